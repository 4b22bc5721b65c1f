"""Triton kernels of difference lanes, compiled for chips that are not here and executed by the PTX simulator.

Each job is the launch that the op's launcher makes. What a kernel may need is recorded: no spilled registers, no stack, and its
registers, bytes of shared memory and machine instructions.
"""

import dataclasses
import re

import pytest
import torch

pytest.importorskip("triton")

from ops.launches import caught
from ops.samples import KINDS
from ptx.aot import ARCHS, CHIPS, CompileFailure, Kernels
from ptx.simulator import SimulationError

from fastscape.ops._registry import OPERATORS

RADII = (0.0, 1e-6, 1e-3, 0.3)  # mixed in one launch; the last takes plain differences
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def normal(*shape, dtype=F32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def lanes(x, orders=2, kept=4, directions=2, dtype=F32):
    return normal(directions, orders, kept, *x.shape, dtype=dtype, seed=1)


def radii():
    return torch.tensor(RADII, dtype=F64)


def pointwise(kind, base=F64, orders=2, kept=4, size=208):
    x = 4 * normal(size, dtype=base)
    x[::5] = x[::5].round() + 1e-4  # breakpoints are crossed
    return "pointwise_difference", x, lanes(x, orders, kept), radii(), kind, KINDS[kind]


def affine(shape=(3, 5, 48)):
    x = normal(*shape, dtype=F64)
    return (
        "affine_difference",
        x,
        lanes(x),
        radii(),
        normal(shape[1], dtype=F64),
        normal(2, shape[1]),
        normal(2, shape[1], seed=2),
    )


def softmax(rows, length, size=3.0):
    x = size * normal(rows, length, dtype=F64)
    x[0, ::3] = -torch.inf
    return "softmax_difference", x, lanes(x) * size, radii()


def cross_entropy(rows, length, size=3.0):
    x = size * normal(rows, length, dtype=F64)
    target = x.argmax(1) if rows == 1 else (torch.arange(rows) * 7) % length
    return "cross_entropy_difference", x, lanes(x) * size, radii(), target


def layer_norm(rows, length, centred=True):
    x, weights = normal(rows, length, dtype=F64) + 1, normal(5, length)
    return "layer_norm_difference", x, lanes(x), radii(), weights[0], weights[1:3], weights[3:], 1e-5, centred


def pool(kernel):
    x = normal(3, 14, 18, dtype=F64).mul(2).round().div(2)
    sizes = ([kernel] * 2, [2, 2], [kernel // 2] * 2, [1, 1], [7, 9])
    return "max_pool2d_difference", x, lanes(x), radii(), *sizes


def linear(dtype, inputs=64, orders=2, rows=34, rank=None):
    """More rows than a tile has, so that the widest is compiled."""
    x, weight, direction = (
        normal(rows, inputs, dtype=F64),
        normal(70, inputs, dtype=dtype),
        normal(2, 70, inputs, dtype=dtype, seed=2),
    )
    given = lanes(x, orders, dtype=dtype) if orders else None
    if rank is None:
        return "linear_difference", x, given, radii(), weight, direction, normal(2, 70, dtype=dtype)
    left, right = normal(2, rank, 70, dtype=dtype, seed=4), normal(2, rank, inputs, dtype=dtype, seed=5)
    return "linear_difference", x, given, radii(), weight, left, normal(2, 70, dtype=dtype), right


CASES = {
    **{
        kind: (pointwise, kind) for kind in ("relu", "clamp", "hardswish", "elu", "gelu", "gelu_tanh", "mish", "softplus", "tanh")
    },
    "gelu, float32, shared a": (pointwise, "gelu", F32, 1, 1, 1001),
    "affine": (affine,),
    "softmax 10": (softmax, 9, 10),
    "softmax 112": (softmax, 2, 112, 9.0),
    "softmax 2048": (softmax, 2, 2000),
    "cross-entropy 10": (cross_entropy, 9, 10, 9.0),
    "cross-entropy in pieces": (cross_entropy, 1, 1500),
    "layer norm 64": (layer_norm, 5, 64),
    "layer norm 4096": (layer_norm, 1, 4000),
    "RMS norm": (layer_norm, 2, 200, False),
    "pool 2": (pool, 2),
    "pool 3": (pool, 3),
    "linear bf16": (linear, BF16),
    "linear fp32": (linear, F32),
    "linear bf16, odd rows": (linear, BF16, 37),
    "linear fp32, odd rows": (linear, F32, 37),
    "linear bf16, weight alone": (linear, BF16, 64, 0),
    "linear bf16, one row": (linear, BF16, 64, 2, 1),
    "linear bf16, factors": (linear, BF16, 64, 2, 34, 19),
    "linear fp32, factors": (linear, F32, 64, 2, 34, 19),
}
# registers, bytes of shared memory and machine instructions on sm_80, sm_90 and sm_100, with the compilers of triton 3.8
LIMITS = {
    "relu": ((72, 1024, 502), (72, 1024, 515), (76, 1024, 498)),
    "clamp": ((96, 1024, 590), (100, 1024, 605), (96, 1024, 586)),
    "hardswish": ((96, 1024, 680), (96, 1024, 692), (96, 1024, 674)),
    "elu": ((128, 1024, 1172), (137, 1024, 1202), (136, 1024, 1030)),
    "gelu": ((133, 1024, 1492), (135, 1024, 1507), (134, 1024, 1103)),
    "gelu_tanh": ((128, 1024, 1531), (132, 1024, 1548), (127, 1024, 1180)),
    "mish": ((124, 1024, 1648), (112, 1024, 1668), (123, 1024, 1320)),
    "softplus": ((128, 1024, 1599), (126, 1024, 1610), (126, 1024, 1272)),
    "tanh": ((132, 1024, 1317), (133, 1024, 1334), (139, 1024, 1049)),
    "gelu, float32, shared a": ((135, 512, 1494), (142, 512, 1508), (140, 512, 1228)),
    "affine": ((80, 4096, 713), (80, 4096, 670), (80, 4096, 668)),
    "softmax 10": ((96, 0, 1723), (95, 0, 1737), (96, 0, 1650)),
    "softmax 112": ((98, 0, 1788), (96, 0, 1709), (102, 0, 1398)),
    "softmax 2048": ((114, 192, 2023), (100, 192, 1535), (102, 192, 1332)),
    "cross-entropy 10": ((94, 0, 2785), (96, 0, 2825), (118, 0, 2556)),
    "cross-entropy in pieces": ((98, 96, 2905), (96, 96, 2315), (102, 96, 1934)),
    "layer norm 64": ((96, 0, 1154), (96, 0, 1167), (96, 0, 1168)),
    "layer norm 4096": ((124, 128, 1068), (119, 128, 1080), (118, 128, 1069)),
    "RMS norm": ((137, 512, 990), (135, 512, 1030), (138, 512, 1026)),
    "pool 2": ((104, 0, 1111), (124, 0, 1563), (116, 0, 1580)),
    "pool 3": ((122, 0, 1340), (124, 0, 1477), (128, 0, 1477)),
    "linear bf16": ((194, 40960, 1514), (197, 49152, 1550), (178, 65600, 2005)),
    "linear fp32": ((194, 24576, 1788), (200, 24576, 1817), (186, 24576, 1847)),
    "linear bf16, odd rows": ((255, 16384, 1850), (210, 18432, 1871), (212, 18720, 2449)),
    "linear fp32, odd rows": ((148, 20480, 1259), (150, 20480, 1282), (146, 20480, 1292)),
    "linear bf16, weight alone": ((62, 12288, 558), (56, 16384, 604), (40, 16400, 827)),
    "linear bf16, one row": ((77, 12288, 499), (73, 12288, 529), (68, 12288, 524)),
    "linear bf16, factors": ((243, 49152, 2882), (237, 49152, 2904), (183, 40992, 2994)),
    "linear fp32, factors": ((80, 10240, 1187), (118, 10240, 1198), (98, 10240, 1208)),
}
FAULTS = {
    "a term of b once instead of twice": ("gelu", ("b * first + 2.0 * product * second", "b * first + product * second")),
    "a breakpoint crossed downwards counted upwards": ("clamp", ("tl.where(down, fall, -fall)", "fall")),
    "the shift of the next channel": (
        "affine",
        (
            "k * channels + channel, shift_direction + k * channels + channel",
            "k * channels + channel, shift_direction + k * channels + (channel + 1) % channels",
        ),
    ),
    "a product of sums once instead of twice": ("softmax 112", ("- 2.0 * rise_a * sum_a", "- rise_a * sum_a")),
    "lanes of the target of the row before": (
        "cross-entropy 10",
        ("r * length + chosen", "tl.maximum(r - 1, 0) * length + chosen"),
    ),
    "the mean of padding": (
        "layer norm 64",
        ("a = tl.where(real, a - (tl.sum(a, 1) * part)[:, None], 0.0)", "a -= tl.max(a, 1)[:, None]"),
    ),
    "distances from the largest forgotten": ("pool 2", ("tl.maximum(high, behind + rise", "tl.maximum(high, rise")),
    "a product once instead of twice": ("linear fp32", ("(2.0 * a.to(tl.float32))", "(a.to(tl.float32))")),
}
SIMULATED = [
    pytest.param(name, arch, marks=[pytest.mark.slow] * (arch == 90))
    for name in CASES
    for arch in ARCHS
    if arch == 80 or not name.startswith("linear bf16")
]


def made(name):
    function, *arguments = CASES[name]
    return function(*arguments)


@pytest.fixture(scope="module")
def launches():
    return {name: caught(*made(name)) for name in CASES}


@pytest.fixture(scope="module")
def compiled(launches, tmp_path_factory):
    jobs = {(name, arch): launches[name].job(arch) for name in CASES for arch in ARCHS}
    jobs |= {(fault, 80): dataclasses.replace(launches[name].job(80), mutate=change) for fault, (name, change) in FAULTS.items()}
    return Kernels(jobs, tmp_path_factory.mktemp("differences"))


@pytest.fixture
def kernel(compiled):
    def find(name, arch):
        outcome = compiled[name, arch]
        assert not isinstance(outcome, CompileFailure), outcome.error
        return outcome

    return find


@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize("name", CASES)
def test_resources(kernel, name, arch):
    found = kernel(name, arch)
    assert (found.stack, found.spill_stores, found.spill_loads) == (0, 0, 0)
    needed = (found.registers, found.shared, found.sass_instructions)
    assert all(a <= b for a, b in zip(needed, LIMITS[name][ARCHS.index(arch)], strict=True)), needed


def errors(found, arguments):
    """Largest error of each lane's a and b at each radius, in units of its largest value and of the dtype's rounding."""
    op, x, given, *rest = arguments
    wide = [value.double() if torch.is_tensor(value) and value.is_floating_point() else value for value in (x, given, *rest)]
    exact = OPERATORS[op].reference(*wide)
    assert (found.shape, found.dtype) == (exact.shape, rest[2].dtype if given is None else given.dtype)
    scale = exact.abs().flatten(3).amax(-1)
    return (found.double() - exact).abs().flatten(3).amax(-1) / (scale * torch.finfo(found.dtype).eps / 2)


def agrees(launch, kernel, arguments):
    """Whether the executed PTX gives the differences; plain ones, at the largest radius, lose some more digits."""
    found, _ = launch.simulated(kernel)
    return bool((errors(found, arguments) <= 32).all())


@pytest.mark.parametrize(("name", "arch"), SIMULATED)
def test_executed_ptx_agrees_with_the_reference(launches, kernel, name, arch):
    assert agrees(launches[name], kernel(name, arch), made(name))


def caught_as_wrong(launch, kernel, arguments):
    """Whether the comparison, or the simulator itself, tells that a kernel is wrong."""
    try:
        return not agrees(launch, kernel, arguments)
    except SimulationError:
        return True


@pytest.mark.parametrize("name", [name for name in CASES if name != "cross-entropy in pieces"])  # which stores whole rows
def test_removed_masks_are_caught(launches, kernel, name):
    found = kernel(name, 80)
    ptx, places = re.subn(r"@%p\d+ st\.global", "st.global", found.ptx)
    assert places
    assert caught_as_wrong(launches[name], dataclasses.replace(found, ptx=ptx), made(name))


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_the_source_are_caught(launches, kernel, fault):
    name = FAULTS[fault][0]
    assert caught_as_wrong(launches[name], kernel(fault, 80), made(name))
