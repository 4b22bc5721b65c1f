"""The Triton kernels of directions and perturbations, compiled for three generations of chips and executed without one.

What a kernel may need is recorded here: no spilled registers, no stack, at most the shared memory of the chip, and machine
instructions for each element. Executed by the simulator of ``tests/ptx``, its PTX gives the bits of the op on the CPU; with a
fault put into it, it does not.
"""

import dataclasses
import re
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch

if not find_spec("triton"):
    pytest.skip("triton is not installed", allow_module_level=True)

from ptx.aot import ARCHS, MAX_SHARED, CompileFailure, Kernels, TritonJob
from ptx.simulator import Pointers, SimulationError, launch

from fastscape import ops
from fastscape.ops import _triton
from fastscape.ops.direction_dot.reference import LANES, SUM_BLOCK, fold
from fastscape.ops.perturb.reference import arithmetic

DIRECTION, DOT, PERTURB = (f"fastscape.ops.{name}.triton" for name in ("direction", "direction_dot", "perturb"))
INDICES, SEED = (3, 2**32 - 1), 2**63 + 12345
CPU = torch.device("cpu")
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@dataclasses.dataclass(frozen=True)
class Direction:
    """A variant of the kernel of `direction`, and sizes to run it on; outputs from ``first`` on of the whole."""

    kind: str
    aligned: bool
    first: int = 0

    @property
    def config(self):
        return _triton.noise_config(self.kind)

    def job(self, arch):
        signature = dict.fromkeys(("table", "ids", "indices", "outputs"), "*i64")
        signature |= dict.fromkeys(("pieces", "directions", "k0", "k1"), "i32")
        constants = {"BLOCK": self.config.block, "RADEMACHER": self.kind == "rademacher", "ALIGNED": self.aligned}
        constants["SHARDS"] = bool(self.first)
        return TritonJob(f"{DIRECTION}:direction_kernel", signature, constants, arch, options=options(self.config.warps))

    @property
    def elements(self):
        return self.config.block / (32 * self.config.warps)

    def agrees(self, compiled):
        # many: the last bit of a coefficient shows in one normal of thousands (of the leading ones in less than one of a million:
        # test_triton_directions compares the literals)
        sizes = [131_076, 8] if self.aligned else [131_071, 1]
        sizes, firsts = (sizes if not self.first else [size % 4096 + 4096 for size in sizes]), [self.first] * 2
        ids, layout = table(sizes, [1, 1], self.config.block, firsts, _triton.UNIT)
        outputs = [np.full((2, size), np.nan, np.float32) for size in sizes]
        places = Pointers(outputs, [-4 * first for first in firsts])
        arguments = [layout.table.numpy(), ids.numpy(), np.array(INDICES), places, 2, 2, *_triton.key(SEED)]
        found = launch(compiled, layout.blocks * 2, arguments).arrays[3]
        return same(found, ops.direction(ids, SEED, INDICES, sizes, self.kind, firsts))


@dataclasses.dataclass(frozen=True)
class Dot:
    """A variant of the kernel of inner products; without a dtype of norms."""

    kind: str
    dtype: torch.dtype | None
    aligned: bool
    sizes: tuple[int, ...] = (2 * 1028, 24)
    first: int = 0

    def job(self, arch):
        signature = dict.fromkeys(("table", "ids", "indices", "vectors"), "*i64") | {"partial": "*fp64"}
        signature |= dict.fromkeys(("pieces", "directions", "blocks", "k0", "k1"), "i32")
        constants = {
            "VECTOR": _triton.language_type(self.dtype or F32),
            "SQUARES": self.dtype is None,
            "BLOCK": SUM_BLOCK,
            "LANES": LANES,
            "LEVELS": LANES.bit_length() - 1,
            "RADEMACHER": self.kind == "rademacher",
            "ALIGNED": self.aligned,
        }
        return TritonJob(f"{DOT}:dot_kernel", signature, constants, arch, options=options(_triton.sum_warps(self.kind)))

    @property
    def elements(self):
        """Of a step: the kernel's loop is not unrolled."""
        return LANES / (32 * _triton.sum_warps(self.kind))

    def agrees(self, compiled):
        sizes, groups = [size - (not self.aligned) for size in self.sizes], [1, 1]
        if not self.aligned:
            sizes[1], groups[1] = 21, 3
        firsts = [self.first] * 2
        ids, layout = table(sizes, groups, SUM_BLOCK, firsts)
        vectors = [normal(size, self.dtype or F32) for size in sizes]
        partial = np.full((2, layout.blocks + 1), np.nan)
        partial[:, -1] = 0.0
        shifts = [-self.first * (self.dtype or F32).itemsize] * 2
        pointers = Pointers([None, None]) if self.dtype is None else Pointers([array(vector) for vector in vectors], shifts)
        numbers = (layout.pieces, 2, layout.blocks, *_triton.key(SEED))
        arguments = [layout.table.numpy(), ids.numpy(), np.array(INDICES), pointers, partial, *numbers]
        sums = torch.from_numpy(launch(compiled, layout.blocks * 2, arguments).arrays[4])
        found = torch.zeros(2, sum(groups), dtype=F64)
        for pieces, gathered in import_module(DOT)._folds((0, 1), tuple(sizes), tuple(groups), CPU):
            found[:, pieces] = fold(sums[:, gathered])
        if self.dtype is None:
            return torch.equal(found, ops.direction_norms(ids, SEED, INDICES, sizes, groups, self.kind, firsts))
        return torch.equal(found, ops.direction_dot(vectors, ids, SEED, INDICES, groups, self.kind, firsts))


@dataclasses.dataclass(frozen=True)
class Perturb:
    """A variant of the kernel of perturbations."""

    kind: str
    weight: torch.dtype
    out: torch.dtype
    grouped: bool
    aligned: bool
    radii: tuple[float, ...] = (0.3,)
    first: int = 0

    @property
    def config(self):
        return _triton.perturb_config()

    def job(self, arch):
        pointers = ("table", "columns", "ids", "indices", "coefficients", "weights", "outputs")
        signature = dict.fromkeys(pointers, "*i64")
        signature["coefficients"] = "*fp64" if self.out == F64 else "*fp32"
        signature |= dict.fromkeys(("pieces", "tensors", "directions", "radii", "total", "k0", "k1"), "i32")
        dtypes = zip(("WEIGHT", "OUT", "COMPUTE"), (self.weight, self.out, arithmetic(self.out)), strict=True)
        constants = {name: _triton.language_type(dtype) for name, dtype in dtypes}
        constants |= {"BLOCK": self.config.block, "RADEMACHER": self.kind == "rademacher"}
        constants |= {"GROUPED": self.grouped, "ALIGNED": self.aligned, "SHARDS": bool(self.first)}
        return TritonJob(f"{PERTURB}:perturb_kernel", signature, constants, arch, options=options(self.config.warps))

    @property
    def elements(self):
        return self.config.block / (32 * self.config.warps)

    def agrees(self, compiled):
        sizes = [2052, 24] if self.aligned else [2051, 21]
        groups = [1, 3] if self.grouped else [1, 1]
        indices = INDICES[: 3 - len(self.radii)]  # several directions, or several radii
        firsts = [self.first] * 2
        ids, layout = table(sizes, [1, 1], self.config.block, firsts, _triton.UNIT)
        weights = [normal(size, self.weight) for size in sizes]
        scales = torch.linspace(0.3, 1.1, len(indices) * sum(groups), dtype=F64).reshape(len(indices), -1)
        steps = torch.tensor(self.radii, dtype=F64)
        coefficients = (steps[:, None] * scales[:, None, :]).to(arithmetic(self.out))
        columns = np.array([[0, groups[0]], [size // group for size, group in zip(sizes, groups, strict=True)]])
        outputs = [array(torch.full((len(indices), size), torch.nan, dtype=self.out)) for _ in self.radii for size in sizes]
        tables = [layout.table.numpy(), columns, ids.numpy(), np.array(indices), coefficients.numpy()]
        numbers = (2, 2, len(indices), len(self.radii), sum(groups), *_triton.key(SEED))
        from_, to = ([-self.first * dtype.itemsize] * many for dtype, many in ((self.weight, 2), (self.out, len(outputs))))
        arguments = [*tables, Pointers([array(weight) for weight in weights], from_), Pointers(outputs, to), *numbers]
        found = launch(compiled, layout.blocks * len(indices), arguments).arrays[6]
        options = {"groups": groups, "dtype": self.out, "distribution": self.kind, "firsts": firsts}
        expected = ops.perturb(weights, ids, SEED, indices, scales, self.radii, **options)
        return same(found, [expected[t][:, r] for r in range(len(self.radii)) for t in range(2)])


def options(warps):
    return {"num_warps": warps, "enable_fp_fusion": False}


def table(sizes, groups, block, firsts=(), unit=1):
    """Ids, and the launch table of the tensors."""
    layout = _triton.layout((0, 1), tuple(sizes), tuple(groups), block, CPU, tuple(firsts), unit)
    return torch.tensor([2**32 - 9, 77]), layout


def normal(size, dtype):
    return torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=F64).to(dtype)


def array(tensor):
    """NumPy's view of a tensor; of bfloat16 the bits."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == BF16 else tensor.numpy()


def same(found, expected):
    return all(
        a.shape == tuple(b.shape) and a.tobytes() == array(b.contiguous()).tobytes() for a, b in zip(found, expected, strict=True)
    )


# Machine instructions for each element on sm_80, sm_90 and sm_100, with the compilers of triton 3.8; a loop's body counts once.
LIMITS = {
    Direction("gaussian", aligned=True): (59.5, 59.6, 60.1),
    Direction("gaussian", aligned=False): (65.8, 69.9, 70.4),
    Direction("rademacher", aligned=True): (6.1, 6.7, 6.7),
    Direction("rademacher", aligned=False): (9.3, 14.4, 14.4),
    Dot("gaussian", None, aligned=False): (109.7, 109.7, 100.5),
    Dot("gaussian", F32, aligned=True): (114.9, 116.0, 111.2),
    Dot("gaussian", F64, aligned=False): (124.7, 126.5, 116.8),
    Dot("rademacher", BF16, aligned=False): (40.1, 38.7, 41.4),
    Perturb("gaussian", F32, F32, grouped=False, aligned=True, radii=(0.3, -0.3)): (71.2, 70.0, 66.0),
    Perturb("gaussian", F32, BF16, grouped=True, aligned=True): (90.3, 91.0, 85.4),
    Perturb("gaussian", F16, F64, grouped=True, aligned=False): (106.0, 110.5, 105.4),
    Perturb("rademacher", BF16, F32, grouped=False, aligned=False, radii=(0.3, -0.3)): (29.4, 33.1, 34.2),
    Direction("gaussian", aligned=True, first=2052): (60.1, 60.6, 61.1),
    Direction("rademacher", aligned=False, first=16385): (16.1, 15.8, 15.8),
    Dot("gaussian", F32, aligned=False, first=4097): (126.0, 125.0, 115.8),
    Perturb("gaussian", F32, F32, grouped=False, aligned=True, radii=(0.3, -0.3), first=2052): (72.0, 70.9, 66.9),
    Perturb("gaussian", F32, F32, grouped=True, aligned=False, first=2049): (107.6, 109.2, 104.0),
}
CASES = [
    pytest.param(variant, arch, id=f"{variant}-sm_{arch}", marks=[pytest.mark.slow] * (arch == 80))
    for variant in LIMITS
    for arch in ARCHS
]


NORMALS, ROWS, PLAIN = (next(variant for variant in LIMITS if isinstance(variant, kind)) for kind in (Direction, Dot, Perturb))
FAULTS = {
    "a coefficient's last bit": (
        NORMALS,
        {"mutate": ("2.0000714765e-1", repr(float(np.nextafter(np.float32(2.0000714765e-1), 1))))},
    ),
    "a rotated counter": (NORMALS, {"mutate": ("high0 ^ c3 ^ k1, low0", "high0 ^ c3 ^ k1, low1")}),
    "the elements before a row": (
        ROWS,
        {"mutate": ("(element >= begin) & (element < end)\n    return", "element < end\n    return")},
    ),
    "lanes added to their neighbours": (
        ROWS,
        {"mutate": ("[2, LANES >> (level + 1)]), axis=0", "[LANES >> (level + 1), 2]), axis=1")},
    ),
    "a fused multiplication": (PLAIN, {"options": options(4) | {"enable_fp_fusion": True}}),
    "the same radius twice": (PLAIN, {"mutate": ("(row + r) * total + column)", "row * total + column)")}),
}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Every variant for every chip, by both, and the kernels with a fault in their source."""
    pytest.importorskip("cuda.bindings")
    jobs = {(variant, arch): variant.job(arch) for variant in LIMITS for arch in ARCHS}
    jobs |= {(fault, 90): dataclasses.replace(variant.job(90), **change) for fault, (variant, change) in FAULTS.items()}
    return Kernels(jobs, tmp_path_factory.mktemp("directions"))


@pytest.fixture
def kernel(compiled):
    def find(variant, arch):
        outcome = compiled[variant, arch]
        assert not isinstance(outcome, CompileFailure), outcome.error
        return outcome

    return find


@pytest.mark.parametrize(("variant", "arch"), CASES)
def test_resources(kernel, variant, arch):
    found = kernel(variant, arch)
    assert (found.stack, found.spill_stores, found.spill_loads) == (0, 0, 0)
    assert found.shared <= MAX_SHARED[arch]
    assert found.sass_instructions / variant.elements <= LIMITS[variant][ARCHS.index(arch)]


@pytest.mark.parametrize(("variant", "arch"), CASES)
def test_executed_ptx_has_the_bits_of_the_cpu(kernel, variant, arch):
    assert variant.agrees(kernel(variant, arch))


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_executed_sums_of_several_blocks(kernel, kind):
    variant = next(v for v in LIMITS if isinstance(v, Dot) and v.kind == kind)
    assert dataclasses.replace(variant, sizes=(SUM_BLOCK + 1028, 24)).agrees(kernel(variant, 90))


def test_an_exact_normal_costs_at_most_72_instructions():
    assert all(LIMITS[v][ARCHS.index(90)] <= 72 for v in LIMITS if isinstance(v, Direction) and not v.first)


def caught(variant, compiled):
    """Whether the comparison with the CPU, or the simulator itself, tells that a kernel is wrong."""
    try:
        return not variant.agrees(compiled)
    except SimulationError:
        return True


def altered(compiled, pattern, replacement, number):
    """A kernel with the first ``number`` (0: all) places of a pattern in its PTX replaced."""
    ptx, found = re.subn(pattern, replacement, compiled.ptx, count=number)
    assert found
    return dataclasses.replace(compiled, ptx=ptx)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_the_source_are_caught(kernel, fault):
    assert caught(FAULTS[fault][0], kernel(fault, 90))


@pytest.mark.parametrize("variant", LIMITS, ids=str)
def test_removed_masks_are_caught(kernel, variant):
    reads = isinstance(variant, Dot)  # which store one number a program; what they mask is what they read
    if reads and variant.dtype is None:
        return  # and norms read nothing: a fault in the source removes their mask
    access = "ld" if reads else "st"
    assert caught(variant, altered(kernel(variant, 90), rf"@%p\d+ {access}\.global", f"{access}.global", 0))


@pytest.mark.parametrize("number", [1, 0], ids=["first", "all"])
@pytest.mark.parametrize("variant", LIMITS, ids=str)
def test_removed_barriers_are_caught(kernel, variant, number):
    found = kernel(variant, 90)
    if "bar.sync" in found.ptx:
        assert caught(variant, altered(found, r"bar\.sync[^;]*;", "", number))
    else:
        assert found.shared == 0


@pytest.mark.parametrize("variant", LIMITS, ids=str)
def test_changed_multipliers_are_caught(kernel, variant):
    multiplier = 0xD2511F53 - 2**32
    assert caught(variant, altered(kernel(variant, 90), str(multiplier), str(multiplier - 2), 1))


@pytest.mark.parametrize("variant", [v for v in LIMITS if v.aligned], ids=str)
def test_a_false_promise_of_alignment_is_caught(kernel, variant):
    assert caught(dataclasses.replace(variant, aligned=False), kernel(variant, 90))
