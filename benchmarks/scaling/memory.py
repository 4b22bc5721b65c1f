"""Memory of a rank that holds a share of an FSDP2 model, beside what a plain forward of the same model takes."""

from __future__ import annotations

import ctypes
import gc
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import fastscape as fs

WIDTH, LAYERS = 512, 128  # 33.6 million parameters, a quarter of a million in each group
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # free memory goes back to the system, so that the peak is of what is held


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def peak(work):
    """Bytes of this process above what it had before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return _status("VmHWM") - before


def _model(width, layers, over):
    with torch.device("meta"):
        blocks = [nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(layers)]
        model = nn.Sequential(*blocks, nn.Linear(width, 8))
    for block in model[:-1]:
        fully_shard(block, mesh=over)
    fully_shard(model, mesh=over)
    model.to_empty(device="cpu")
    torch.manual_seed(dist.get_rank())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.to_local().normal_(0, width**-0.5)
    return model


def _calls(model, width):
    draw = torch.Generator().manual_seed(0)
    batch = torch.randn(8, width, generator=draw), torch.randint(0, 8, (8,), generator=draw)
    objective = fs.Objective(model, [batch] * dist.get_world_size(), criterion=F.cross_entropy)
    directions = fs.Directions(objective, 1)

    def forward():
        with torch.no_grad():
            model(batch[0])

    return {
        "a forward, without fastscape": forward,
        "fs.losses": lambda: fs.losses(objective, directions, [0.0, 1e-2]),
        "fs.responses": lambda: fs.responses(objective, directions, [1e-2]),
    }


def sharded():
    """Peaks by call, and the bytes that a rank's shard and the largest gathered group have."""
    warnings.simplefilter("ignore", fs.PrecisionWarning)
    dist.init_process_group("gloo")
    over = init_device_mesh("cpu", (dist.get_world_size(),))
    for call in _calls(_model(16, 2, over), 16).values():
        call()  # what is imported and made once
    model = _model(WIDTH, LAYERS, over)
    shard = sum(parameter.to_local().nbytes for parameter in model.parameters())
    calls = _calls(model, WIDTH)
    calls["a forward, without fastscape"]()  # FSDP2 makes its buffers
    found = {name: peak(call) for name, call in calls.items()}
    dist.barrier()
    dist.destroy_process_group()
    return {"peaks": found, "shard": shard, "group": 4 * (WIDTH * WIDTH + WIDTH), "parameters": WIDTH * (WIDTH + 1) * LAYERS}
