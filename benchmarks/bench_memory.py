"""Peak memory of a probe in its own process: ResNet-18, one direction and 256."""

import json
import os
import subprocess
import sys

import pytest
from interleave import keep

SCRIPT = """
import json, re, sys, torch, fastscape as fs
from pathlib import Path
from fastscape import zoo
from torch.nn import functional as F

def resident(kind):
    return int(re.search(rf"{kind}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

torch.manual_seed(0)
model = zoo.resnet18()
data = [(torch.randn(1, 3, 32, 32), torch.tensor([3]))]
with torch.no_grad():
    model.eval()(data[0][0])
objective = fs.Objective(model, data, criterion=F.cross_entropy)
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
values = fs.losses(objective, fs.Directions(objective, int(sys.argv[1])), [0.01], precision="float32", method="loop")
extra = resident("VmHWM") - before
print(json.dumps({"extra": extra, "finite": bool(values.isfinite().all()), "copy": objective.size * 4 / 2**20}))
"""


# freed blocks go back to the system at once: the high-water mark is that of live memory, not of a fragmented heap
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak(count):
    """Peak resident MiB that ``count`` directions add to model and data: the median of three processes."""
    command = [sys.executable, "-c", SCRIPT, str(count)]
    runs = [subprocess.run(command, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=True) for _ in range(3)]
    return sorted((json.loads(run.stdout) for run in runs), key=lambda run: run["extra"])[1]


@pytest.mark.parametrize("count", [256])
def test_memory_does_not_grow_with_directions(benchmark, count):
    one, many = peak(1), peak(count)
    assert one["finite"]
    assert many["finite"]
    rows = {
        "1 direction": {"time": round(one["extra"], 2), "ratio": 1.0},
        f"{count} directions": {"time": round(many["extra"], 2), "ratio": round(one["extra"] / many["extra"], 4)},
        "one copy of the parameters": {"time": round(one["copy"], 2), "ratio": round(one["extra"] / one["copy"], 4)},
    }
    keep(benchmark, "peak extra memory, resnet18, one image, float32", rows, unit="MiB", baseline="1 direction")
    benchmark.pedantic(peak, (1,), rounds=1)
