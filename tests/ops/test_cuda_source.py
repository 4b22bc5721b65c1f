"""The CUDA C kernel without a GPU: NVRTC compiles it, its PTX runs with the launcher's arguments and gives the CPU's bits."""

import ctypes
import functools
import importlib.util
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from fastscape.ops import _cuda, perturb
from fastscape.ops.perturb import cuda

if cuda.available():
    pytest.skip(cuda.available(), allow_module_level=True)
pytest.importorskip("triton")  # its tools count instructions

from ptx.aot import CompileFailure, CudaJob, run_job
from ptx.simulator import MisalignedError, OutOfBoundsError, Pointers, RaceError, launch

FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
GAUSSIAN, RADEMACHER = "gaussian", "rademacher"
ARCHS = (80, 90, 100)
# weights, results, distribution, grouped: most registers and machine instructions over the chips
RESOURCES = {
    (FLOAT32, FLOAT32, GAUSSIAN, False): (48, 466),
    (FLOAT32, FLOAT32, GAUSSIAN, True): (56, 669),
    (FLOAT32, FLOAT32, RADEMACHER, False): (60, 393),
    (FLOAT32, FLOAT64, GAUSSIAN, False): (59, 479),
    (FLOAT64, FLOAT64, GAUSSIAN, True): (64, 674),
    (BFLOAT16, BFLOAT16, GAUSSIAN, False): (48, 508),
    (FLOAT16, FLOAT16, GAUSSIAN, True): (56, 689),
    (FLOAT16, FLOAT16, RADEMACHER, True): (62, 614),
}
SEED, INDICES, RADII = -(2**62) - 5, [3, 2**32 - 1], [0.25, -1e-3, 0.0]
SHAPES = ((33, 131), (5,), (0,), (3, 5, 3), (32, 66))  # odd and even sizes, one of them empty
ONES = (1, 1, 1, 1, 1)
GUARD = ("(int)min(segment.count - element, (int64_t)4)", "4")


@functools.cache
def kernel(options, arch=80, mutate=None, path=None):
    """The compiled kernel, of a source other than the package's if ``path`` is given."""
    found = run_job(CudaJob(path or _cuda.source(cuda.SOURCE), arch, options=options, mutate=mutate), None)
    assert not isinstance(found, CompileFailure), found.error
    return found


def memory(address, count, width):
    """The bits at an address of this process."""
    return np.frombuffer((ctypes.c_byte * (count * width)).from_address(address), f"u{width}")


@pytest.fixture
def simulated(monkeypatch):
    """Let the launcher's kernels run in the simulator on the memory of CPU tensors; choose the chip, inject a fault."""
    widths = {name: dtype.itemsize for dtype, name in cuda.TYPES.items()}

    def use(unaligned=0, **how):
        def start(instance, blocks, arguments, device):
            table, weights, outputs, ids, indices, scales, radii, *numbers = arguments
            options = dict(option.split("=") for option in instance)
            counts = dict(table.reshape(-1, 7)[:, [cuda.SLOT, 2]].tolist())
            rows = len(indices) * len(radii)
            lists = [
                [
                    memory(at, counts[slot] * many, widths[options[name]]) if slot in counts else None
                    for slot, at in enumerate(places)
                ]
                for name, many, places in (("-DFS_WEIGHT", 1, weights.tolist()), ("-DFS_OUT", rows, outputs.tolist()))
            ]
            lists[0] = [None if bits is None else np.concatenate([bits[:unaligned], bits]) for bits in lists[0]]
            tensors = [tensor.numpy() for tensor in (ids, indices, scales, radii)]
            passed = [table.numpy(), *map(Pointers, lists), *tensors, *(number.value for number in numbers)]
            found = launch(kernel(instance, **how), blocks, passed, block=cuda.THREADS)
            for target, bits in zip(lists[1], found.arrays[2], strict=True):
                if target is not None:
                    target[:] = bits

        monkeypatch.setattr(cuda, "_start", start)

    return use


def arguments(weight, out, distribution, groups, shapes=SHAPES, device="cpu"):
    """Arguments of the launcher; ``weight`` is one dtype or one per tensor."""
    generator = torch.Generator().manual_seed(0)
    dtypes = weight if isinstance(weight, tuple) else (weight,) * len(shapes)
    weights = [torch.randn(shape, generator=generator).to(device, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    scales = torch.rand(len(INDICES), sum(groups), generator=generator, dtype=FLOAT64).to(device)
    ids = torch.tensor([7, 2**32 - 1, 0, 1234, 99][: len(shapes)], device=device)
    return weights, ids, SEED, list(INDICES), scales, list(groups), list(RADII), out, distribution


def on_cpu(weights, ids, seed, indices, scales, groups, radii, dtype, distribution, firsts=None):
    """What the package answers on the CPU."""
    weights, ids, scales = [weight.cpu() for weight in weights], ids.cpu(), scales.cpu()
    options = {"groups": groups, "dtype": dtype, "distribution": distribution, "firsts": firsts}
    return perturb(weights, ids, seed % 2**64, indices, scales, radii, **options)


def same_bits(found, expected):
    return all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.cpu().view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("instance", RESOURCES, ids=lambda key: " ".join(str(each).removeprefix("torch.") for each in key))
def test_it_compiles_without_spills_within_the_recorded_resources(instance, arch):
    *types, grouped = instance
    found = kernel(cuda.options(*types, grouped=grouped), arch)
    registers, instructions = RESOURCES[instance]
    assert found.stack == found.spill_stores == found.spill_loads == 0
    assert found.registers <= registers <= 64  # of 65536, for eight blocks of 128 threads
    assert found.sass_instructions <= instructions
    assert found.shared == (cuda.BLOCK // 8 if types[2] == RADEMACHER else 0)


CASES = {
    "float32": (FLOAT32, FLOAT32, GAUSSIAN, ONES),
    "float32 rows": (FLOAT32, FLOAT32, GAUSSIAN, (33, 1, 1, 3, 32)),
    "float32 elements": (FLOAT32, FLOAT32, GAUSSIAN, (4323, 5, 1, 15, 704)),
    "float32 to float64": (FLOAT32, FLOAT64, GAUSSIAN, ONES),
    "float64 rows": (FLOAT64, FLOAT64, GAUSSIAN, (33, 5, 1, 3, 32)),
    "bfloat16": (BFLOAT16, BFLOAT16, GAUSSIAN, ONES),
    "float16 rows": (FLOAT16, FLOAT16, GAUSSIAN, (33, 1, 1, 3, 1)),
    "signs": (FLOAT32, FLOAT32, RADEMACHER, ONES),
    "signs rows": (BFLOAT16, FLOAT16, RADEMACHER, (33, 5, 1, 3, 32)),
    "signs float64": (FLOAT64, FLOAT64, RADEMACHER, ONES),
    "mixed": ((FLOAT32, BFLOAT16, FLOAT32, FLOAT64, BFLOAT16), FLOAT32, GAUSSIAN, ONES),
}


@pytest.mark.parametrize("case", CASES)
def test_the_ptx_gives_the_bits_of_the_cpu(simulated, case):
    simulated()
    given = arguments(*CASES[case])
    assert same_bits(cuda.perturb(*given), on_cpu(*given))


@pytest.mark.parametrize("arch", ARCHS[1:])
def test_the_ptx_of_later_chips_gives_them_too(simulated, arch):
    simulated(arch=arch)
    for case in ("float32", "signs"):
        given = arguments(*CASES[case])
        assert same_bits(cuda.perturb(*given), on_cpu(*given))


@pytest.mark.parametrize("distribution", [GAUSSIAN, RADEMACHER])
@pytest.mark.parametrize("first", [0, 1, 3, 4, 127, 128, 2049, 16385])
def test_slices_of_whole_parameters(simulated, first, distribution):
    simulated()
    given = arguments(FLOAT32, FLOAT32, distribution, (3, 5), ((3, 701), (5,)))
    assert same_bits(cuda.perturb(*given, [first, first + 2]), on_cpu(*given, [first, first + 2]))
    whole = arguments(BFLOAT16, FLOAT32, distribution, (1,), ((701,),))
    assert same_bits(cuda.perturb(*whole, [first]), on_cpu(*whole, [first]))


@pytest.mark.parametrize(
    "mutate", [("(int)max(-element, (int64_t)0)", "0"), ("absent == 0 && present == 4 && aligned(to)", "present == 4")]
)
def test_elements_before_a_slice_are_not_written(simulated, mutate):
    simulated(mutate=mutate)
    given = arguments(FLOAT32, FLOAT32, GAUSSIAN, (1,), ((131,),))
    with pytest.raises((OutOfBoundsError, MisalignedError)):
        cuda.perturb(*given, [127])


def test_weights_that_begin_anywhere(simulated):
    begin = "(const FS_WEIGHT *)weights[segment.slot]"
    simulated(unaligned=1, mutate=(begin, f"{begin} + 1"))  # arrays of the simulator are aligned: start at their second element
    given = arguments(FLOAT32, FLOAT32, GAUSSIAN, (1, 1), ((4096,), (11,)))
    assert same_bits(cuda.perturb(*given), on_cpu(*given))


def test_values_at_the_ends_of_the_formats(simulated):
    simulated()
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([nan, inf, -inf, 0.0, -0.0, 1e-45, -1e-39, 3e38, 65504.0, -65519.0, 6e-8, 1.00390625])
    for dtype in (FLOAT32, BFLOAT16, FLOAT16):
        given = ([values.to(dtype)], torch.tensor([3]), 1, [0], torch.ones(1, 1, dtype=FLOAT64), [1], [0.0, 1e-40, 1.0], dtype)
        for distribution in (GAUSSIAN, RADEMACHER):
            (found,), (expected,) = cuda.perturb(*given, distribution), on_cpu(*given, distribution)
            assert same_bits([found[..., 1:].contiguous()], [expected[..., 1:].contiguous()])
            assert found[..., 0].isnan().all()  # a NaN's other bits are the chip's, but for bfloat16
            if dtype == BFLOAT16:
                assert (found[..., 0].contiguous().view(torch.int16) == 0x7FC0).all()


@pytest.mark.parametrize(("count", "radii"), [(0, RADII), (2, []), (0, [])])
def test_nothing_to_do(count, radii):
    given = [*arguments(FLOAT32, FLOAT32, GAUSSIAN, ONES)]
    given[3], given[4], given[6] = INDICES[:count], given[4][:count], radii
    assert [row.shape for row in cuda.perturb(*given)] == [row.shape for row in on_cpu(*given)]


@pytest.mark.parametrize(
    ("mutate", "error"),
    [
        (GUARD, OutOfBoundsError),
        (("present == 4 && aligned(to)", "present == 4"), MisalignedError),
        (("__syncthreads();", ""), RaceError),
        (("s[i] = i < present ? scale[piece] : 0.0", "s[i] = scale[piece]"), OutOfBoundsError),
    ],
    ids=["bounds", "alignment", "barrier", "scales"],
)
def test_a_removed_check_is_caught(simulated, mutate, error):
    simulated(mutate=mutate)
    with pytest.raises(error):
        cuda.perturb(*arguments(FLOAT32, FLOAT32, RADEMACHER, (5, 1), ((5,), (131,))))


@pytest.mark.parametrize(
    "mutate",
    [
        ("return add(mul(c, z), w);", "return c * z + w;"),  # NVRTC fuses it
        ("(Compute)__dmul_rn(radii[r], s[i])", "(Compute)radii[r] * (Compute)s[i]"),  # rounded twice
        ("(uint32_t)((first + element) / 4)", "(uint32_t)(offset / 4)"),
        ("if (offset + i == next)", "if (false)"),
    ],
    ids=["fused", "coefficient", "counter", "pieces"],
)
def test_changed_arithmetic_changes_bits(simulated, mutate):
    simulated(mutate=mutate)
    given = arguments(FLOAT32, FLOAT32, GAUSSIAN, (33, 1, 1, 3, 32))
    assert not same_bits(cuda.perturb(*given), on_cpu(*given))


@pytest.mark.parametrize(("rounding", "same"), [("0x7FFFu + ((bits >> 16) & 1u)", True), ("0x7FFFu", False), ("0x8000u", False)])
def test_halves_of_bfloat16_go_to_even(simulated, rounding, same):
    simulated(mutate=("0x7FFFu + ((bits >> 16) & 1u)", rounding))
    given = arguments(FLOAT32, BFLOAT16, GAUSSIAN, (1,), ((128,),))
    given[0][0] = torch.arange(257, 513, 2) / 256  # all half way between two
    given[6][:] = [0.0]
    assert same_bits(cuda.perturb(*given), on_cpu(*given)) == same


@pytest.mark.parametrize(
    ("constant", "other"), [("0x9E3779B9u", "0x9E3779BAu"), ("0x3f3504f3)", "0x3f3504f4)"), ("1.1676998740e-1f", "1.1676e-1f")]
)
def test_a_changed_constant_of_the_header_changes_bits(simulated, tmp_path, constant, other):
    header = _cuda.source("philox.h").read_text()
    assert constant in header
    (tmp_path / "philox.h").write_text(header.replace(constant, other))
    path = tmp_path / cuda.SOURCE
    path.parent.mkdir()
    shutil.copy(_cuda.source(cuda.SOURCE), path)
    simulated(path=path)
    given = arguments(FLOAT32, FLOAT32, GAUSSIAN, (1, 1), ((400,), (5,)))
    assert not same_bits(cuda.perturb(*given), on_cpu(*given))


def test_the_launcher_compiles_what_the_driver_loads():
    options = cuda.options(FLOAT32, FLOAT32, GAUSSIAN, grouped=False)
    assert _cuda.compiled(cuda.SOURCE, ("--ptxas-options=-v", *options), (9, 0)) == kernel(options, 90).cubin


def test_an_error_of_the_compiler_is_told_with_its_messages():
    with pytest.raises(RuntimeError, match=r"perturb\.cu does not compile for sm_90: nvrtcCompileProgram failed") as caught:
        _cuda.compiled(cuda.SOURCE, ("-DFS_WEIGHT=nonsense",), (9, 0))
    assert 'identifier "nonsense" is undefined' in str(caught.value)
    with pytest.raises(RuntimeError, match="for sm_10: .*pip install --upgrade cuda-bindings"):
        _cuda.compiled(cuda.SOURCE, (), (1, 0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_the_error_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(RuntimeError, match="cuModuleLoadData cannot be called .*or install triton"):
        _cuda.function(cuda.SOURCE, "perturb", cuda.options(FLOAT32, FLOAT32, GAUSSIAN, grouped=False), 0)


def test_the_reason_names_what_is_missing(monkeypatch, tmp_path):
    assert cuda.available() == ""
    monkeypatch.setattr(_cuda, "FOLDERS", (tmp_path, tmp_path / "csrc"))
    assert "reinstall fastscape" in cuda.available()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = _cuda.kernel("fastscape.ops.perturb.cuda", "perturb", cuda.SOURCE)
    assert (found.function, found.language) == (None, "CUDA C")
    assert found.reason == "neither triton nor cuda-bindings is installed"


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import fastscape as fs
print([answer.implementation for answer in fs.status().answers if (answer.op, answer.device) == ("perturb", "CUDA")])
"""


def test_it_answers_where_triton_is_missing():
    run = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=True)
    assert run.stdout == "['CUDA C']\n"


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_the_device_gives_the_bits_of_the_cpu(case):
    given = arguments(*CASES[case], device="cuda")
    assert same_bits(cuda.perturb(*given), on_cpu(*given))


@pytest.mark.gpu
def test_the_device_takes_weights_that_begin_anywhere_and_another_stream():
    given = arguments(FLOAT32, FLOAT32, GAUSSIAN, (1, 1), ((4097,), (100_003,)), device="cuda")
    given[0][:] = [weight[1:] for weight in given[0]]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = cuda.perturb(*given)
    stream.synchronize()
    assert same_bits(found, on_cpu(*given))
