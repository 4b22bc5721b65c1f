"""Models, data and the fixture that proves a call left no trace."""

import gc
import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: torchvision and the first custom op do

import random
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import _clock, zoo

BACKENDS = torch.backends
LEAVES = (
    BACKENDS.cuda.matmul,
    BACKENDS.cudnn.conv,
    BACKENDS.cudnn.rnn,
    BACKENDS.mkldnn.matmul,
    BACKENDS.mkldnn.conv,
    BACKENDS.mkldnn.rnn,
)


class SimulatedClock:
    """Seconds that pass by reading them: no test depends on the machine's speed or load.

    Attributes:
        now: the time.
        tick: seconds that every reading takes.
    """

    def __init__(self):
        self.now, self.tick = 0.0, 1e-4

    def __call__(self):
        self.now += self.tick
        return self.now


# Also for what is built once a session; tests that import this file by name, as another module, share the clock.
CLOCK = _clock.read = _clock.read if hasattr(_clock.read, "tick") else SimulatedClock()
_clock.processor = lambda: 1.0


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell, where Ctrl-C is for others
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Leave the tests themselves, millions of objects, out of every later collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def clock():
    """The simulated clock, to let time pass; another tick lasts until the end of the test."""
    tick = CLOCK.tick
    yield CLOCK
    CLOCK.tick = tick


class TiedModel(nn.Module):
    """An embedding and a head that share one tensor."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def legacy(getter):
    """A legacy precision switch, or the word that torch refuses to tell it."""
    try:
        return getter()
    except RuntimeError:
        return "refused"


def process_state():
    """Every global setting and random generator that a probe might touch."""
    return {
        "torch rng": torch.get_rng_state().numpy().tobytes(),
        "numpy rng": repr(np.random.get_state()),
        "python rng": random.getstate(),
        "fp32 precision": [leaf.fp32_precision for leaf in LEAVES],
        "roots": (BACKENDS.fp32_precision, BACKENDS.cudnn.fp32_precision, BACKENDS.mkldnn.fp32_precision),
        "matmul precision": legacy(torch.get_float32_matmul_precision),
        "allow tf32": (legacy(lambda: BACKENDS.cuda.matmul.allow_tf32), legacy(lambda: BACKENDS.cudnn.allow_tf32)),
        "reduced": (
            BACKENDS.cuda.matmul.allow_fp16_reduced_precision_reduction,
            BACKENDS.cuda.matmul.allow_bf16_reduced_precision_reduction,
        ),
        "cudnn": (BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic, BACKENDS.cudnn.enabled),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "mha": BACKENDS.mha.get_fastpath_enabled(),
        "sdpa": (
            BACKENDS.cuda.flash_sdp_enabled(),
            BACKENDS.cuda.mem_efficient_sdp_enabled(),
            BACKENDS.cuda.math_sdp_enabled(),
        ),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "default": (torch.get_default_dtype(), torch.get_num_threads()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    }


def tensor_bits(tensor):
    """Bytes, dtype, storage address and layout of a tensor."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return raw, tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr(), tensor._version


def model_state(model):
    """Everything observable about a module: tensors, gradients, flags, modes, hooks, attributes."""
    parameters = {
        name: (
            id(tensor),
            tensor_bits(tensor),
            tensor.requires_grad,
            None if tensor.grad is None else (id(tensor.grad), tensor_bits(tensor.grad)),
        )
        for name, tensor in model.named_parameters(remove_duplicate=False)
    }
    buffers = {name: (id(tensor), tensor_bits(tensor)) for name, tensor in model.named_buffers()}
    modules = {
        name: (id(module), module.training, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    return {"parameters": parameters, "buffers": buffers, "modules": modules}


@pytest.fixture
def untouched():
    """Context manager: the model and the process are bit-identical after the block, also when it raises."""

    @contextmanager
    def check(model):
        before = process_state(), model_state(model)
        try:
            yield
        finally:
            after = process_state(), model_state(model)
            for was, now in zip(before, after, strict=True):
                for key in was:
                    assert now[key] == was[key], f"{key} changed"

    return check


@pytest.fixture(scope="session")
def digits():
    """The first 256 digits, as one batch."""
    return zoo.digits(samples=256)


@pytest.fixture(scope="session")
def trained_mlp(tmp_path_factory):
    """The digits MLP (ReLU) after 200 steps, evaluated elsewhere; copy before changing it."""
    torch.manual_seed(0)
    model = zoo.mlp()
    zoo.train(model, zoo.digits(), tmp_path_factory.mktemp("mlp"), steps=200, checkpoints=2)
    return model.eval()


@pytest.fixture
def tanh_net():
    """A small smooth network, fixed weights."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))


@pytest.fixture
def bn_net():
    """A convolution with batch norm, dropout and a gradient: everything that could be disturbed, in training mode."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(108, 10))
    inputs = torch.randn(6, 1, 8, 8)
    model(inputs).sum().backward()
    return model


@pytest.fixture
def tanh_objective(tanh_net, digits):
    return fs.Objective(tanh_net, digits, criterion=F.cross_entropy)


@pytest.fixture
def bn_objective(bn_net, digits):
    return fs.Objective(bn_net, [(digits[0][0][:20], digits[0][1][:20])], criterion=F.cross_entropy)
