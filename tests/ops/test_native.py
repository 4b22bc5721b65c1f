"""The C++ library: what happens where it is missing, broken or of another version, and that switching it off changes no bit."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ops.samples import BITWISE, SAMPLES

from fastscape import ops
from fastscape.ops import _native, _tasks
from fastscape.ops._library_file import damage_of
from fastscape.ops._registry import OPERATORS
from fastscape.ops.direction.reference import draw
from fastscape.ops.perturb.reference import displaced

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++")
needs_library = pytest.mark.skipif(not _native.library.available, reason=_native.library.reason)


def compiled(folder, source, *flags, name="library.so"):
    """Compile C++ text to a file in ``folder``."""
    text, target = folder / "source.cpp", folder / name
    text.write_text(source)
    subprocess.run([COMPILER, "-std=c++17", f"-I{ROOT / 'csrc'}", *flags, str(text), "-o", str(target)], check=True)
    return target


def test_a_library_that_was_not_built_is_silent_unless_required(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = _native.load(tmp_path / "_native.so", mode="")
    assert not found.available
    assert found.reason == "_native.so was not built: install g++ 12 or newer, then fastscape again"
    with pytest.raises(ImportError, match="FASTSCAPE_NATIVE=require, but _native.so was not built"):
        _native.load(tmp_path / "_native.so", mode="require")


def test_a_corrupt_file_warns_once_with_its_name(tmp_path):
    path = tmp_path / "_native.so"
    path.write_bytes(b"not a library")
    with pytest.warns(RuntimeWarning, match=rf"{re.escape(str(path))} cannot be used: .*the PyTorch references run instead"):
        assert not _native.load(path, mode="").available
    with pytest.raises(ImportError, match="cannot be used"):
        _native.load(path, mode="require")


@needs_compiler
def test_another_abi_version_and_a_missing_symbol_warn(tmp_path):
    other = compiled(tmp_path, 'extern "C" int fastscape_abi() { return 99; }', "-shared", "-fPIC")
    with pytest.warns(RuntimeWarning, match=f"has ABI version 99, this package needs {_native.ABI}: install fastscape again"):
        assert not _native.load(other, mode="").available
    bare = f'extern "C" int fastscape_abi() {{ return {_native.ABI}; }}'
    with pytest.warns(RuntimeWarning, match="cannot be used: .*fastscape_perturb"):
        assert not _native.load(compiled(tmp_path, bare, "-shared", "-fPIC", name="bare.so"), mode="").available


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="FASTSCAPE_NATIVE must be 'require', '0' or not set, got 'required'"):
        _native.load(mode="required")


def test_zero_turns_it_off():
    assert _native.load(mode="0").reason == "turned off by FASTSCAPE_NATIVE=0"


def test_the_abi_numbers_agree():
    declared = re.search(r"constexpr int ABI = (\d+);", (ROOT / "csrc" / "cpu" / "api.h").read_text())
    assert int(declared[1]) == _native.ABI


@needs_library
def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="isa must be one of baseline, avx2, avx512, got 'neon'"):
        _native.library.set_isa("neon")


def test_an_unknown_instruction_set_of_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("FASTSCAPE_ISA", "neon")
    with pytest.raises(ValueError, match="FASTSCAPE_ISA must be one of baseline, avx2, avx512 or not set, got 'neon'"):
        _native.load()


@needs_library
def test_the_environment_forces_an_instruction_set_and_the_status_says_so(monkeypatch):
    before = _native.library.isa
    try:
        monkeypatch.setenv("FASTSCAPE_ISA", "baseline")
        library = _native.load()
        assert (library.isa, library.forced) == ("baseline", "baseline")
        monkeypatch.setattr(_native, "library", library)
        assert ops.status().native_forced
        assert "native library: baseline (forced by FASTSCAPE_ISA=baseline)" in str(ops.status())
    finally:
        library.set_isa(before)


@needs_library
def test_an_instruction_set_that_the_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(_native.Library, "set_isa", lambda self, _isa: self.isa)  # as the library answers there
    lacking = next(isa for isa in _native.ISAS if isa != _native.library.isa)
    with pytest.raises(
        ValueError, match=f"FASTSCAPE_ISA must be an instruction set of this processor, got {lacking!r}; its best is"
    ):
        _native.load(isa=lacking)


@needs_compiler
@pytest.mark.parametrize("optimisation", ["-O0", "-O3"])
def test_the_shared_header_gives_the_reference_bits(tmp_path, optimisation):
    source = """
    #include "philox.h"
    #include <cstdio>
    int main() {
      for (uint32_t q = 0; q < 5000; ++q) {
        const fastscape::Normals n = fastscape::normals(q, 3, 1234567, 0, 99, 7);
        const float values[4] = {n.x, n.y, n.z, n.w};
        fwrite(values, 4, 4, stdout);
      }
      for (uint32_t e = 0; e < 5000; ++e) {
        const float sign = fastscape::sign_of(fastscape::philox(e / 128, 3, 1234567, 0, 99, 7), e);
        fwrite(&sign, 4, 1, stdout);
      }
    }"""
    program = compiled(tmp_path, source, optimisation, "-ffp-contract=off", "-fno-math-errno", name="program")
    values = torch.frombuffer(bytearray(subprocess.run([program], capture_output=True, check=True).stdout), dtype=torch.float32)
    seed = 99 | 7 << 32
    assert torch.equal(values[:20_000], draw(seed, 3, [1234567], [20_000])[0])
    assert torch.equal(values[20_000:], draw(seed, 3, [1234567], [5000], "rademacher")[0])


@needs_library
@pytest.mark.parametrize("isa", _native.ISAS)
@pytest.mark.parametrize("dtype", _tasks.TYPES, ids=str)
@pytest.mark.parametrize("weight", [torch.float32, torch.float64], ids=str)
def test_results_written_around_the_caches_are_the_same(monkeypatch, isa, dtype, weight):
    """Large results take other instructions; here small ones do, at every alignment of the first element."""
    before = _native.library.isa
    if _native.library.set_isa(isa) != isa:
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setattr(_native, "STREAM_BYTES", 0)
    weights = torch.linspace(-1, 1, 5003, dtype=weight)
    try:
        for first in range(17):
            part = weights[first:]
            outputs = [torch.full((5003,), torch.nan, dtype=dtype)[first:] for _ in range(2)]
            move = ops.Perturbation([part], [[outputs[0]], [outputs[1]]], [7])
            move.aim(3, 5, np.array([0.5]))
            move.write(0.25, -0.25)
            expected = displaced(
                part, draw(3, 5, [7], [len(part)])[0][None], torch.tensor([[0.5]]).double(), (0.25, -0.25), dtype
            )[0]
            assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))
    finally:
        _native.library.set_isa(before)


@needs_compiler
@needs_library
@pytest.mark.parametrize("name", OPERATORS)
def test_the_scalar_code_of_other_processors_gives_the_reference(scalar_library, monkeypatch, name):
    monkeypatch.setattr(_native, "library", scalar_library)
    operator = OPERATORS[name]
    for arguments in SAMPLES[name]():
        found, expected = operator(*arguments), operator.reference(*arguments)
        pairs = zip(found, expected, strict=True) if isinstance(found, (list, tuple)) else [(found, expected)]
        for one, other in pairs:
            tolerance = 0.0 if name in BITWISE else 1e-2 if one.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(one, other, rtol=tolerance, atol=min(tolerance, 1e-5), equal_nan=True)


@pytest.fixture(scope="module")
def scalar_library(tmp_path_factory):
    """The library as it is built where there is no x86: without vector code of its own."""
    target = tmp_path_factory.mktemp("scalar") / "_native.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-DFS_SCALAR"]
    sources = [str(ROOT / "csrc" / "cpu" / name) for name in ("library.cpp", "isa_baseline.cpp")]
    subprocess.run([COMPILER, *flags, *sources, "-o", str(target)], check=True)
    found = _native.load(target, mode="require")
    assert found.isa == "baseline"
    assert found.set_isa("avx2") == "baseline"
    return found


ARM = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
DRIVER = """
#include <cstdio>
#include <vector>
#include "cpu/api.h"
using namespace fastscape;
extern "C" int fastscape_perturb(void *, const PerturbTask *);
int main() {
  int64_t count = 20003, first = 0, ends = (count + BLOCK - 1) / BLOCK;
  uint32_t id = 7, index = 3;
  int8_t type = FLOAT32;
  double scale = 0.5, radius = 0.25;
  for (int32_t kind = 0; kind < 2; ++kind) {
    std::vector<float> noise(count), moved(count), weights(count);
    for (int64_t i = 0; i < count; ++i) weights[i] = (float)i / 1024;
    const void *weight = weights.data();
    void *outputs[2] = {noise.data(), moved.data()};
    PerturbTask task{};
    task.segments = {1, nullptr, nullptr, &count, &first, &id, &type};
    task.noise = {5, 0, kind};
    task.directions = task.radii_count = 1;
    task.indices = &index, task.scales = &scale, task.radii = &radius, task.block_ends = &ends;
    task.outputs = outputs;
    fastscape_perturb(nullptr, &task);
    task.segments.weights = &weight, task.outputs = outputs + 1;
    fastscape_perturb(nullptr, &task);
    fwrite(noise.data(), 4, count, stdout), fwrite(moved.data(), 4, count, stdout);
  }
}"""


@pytest.mark.skipif(None in ARM, reason="no cross-compiler and emulator for aarch64")
def test_aarch64_gives_the_same_bits(tmp_path):
    (tmp_path / "driver.cpp").write_text(DRIVER)
    flags = ["-std=c++17", "-O3", "-static", "-ffp-contract=off", "-fno-math-errno", f"-I{ROOT / 'csrc'}"]
    sources = [ROOT / "csrc" / "cpu" / "library.cpp", ROOT / "csrc" / "cpu" / "isa_baseline.cpp", tmp_path / "driver.cpp"]
    subprocess.run([ARM[0], *flags, *map(str, sources), "-o", str(tmp_path / "driver")], check=True)
    output = subprocess.run([ARM[1], str(tmp_path / "driver")], capture_output=True, check=True).stdout
    values = torch.frombuffer(bytearray(output), dtype=torch.float32).reshape(2, 2, 20_003)
    weights, scale = torch.arange(20_003) / 1024, torch.tensor([[0.5]], dtype=torch.float64)
    for (noise, moved), kind in zip(values, ("gaussian", "rademacher"), strict=True):
        assert torch.equal(noise, draw(5, 3, [7], [20_003], kind)[0])
        assert torch.equal(moved, displaced(weights, noise[None], scale, (0.25,), torch.float32)[0, 0])


PROBE = """
import hashlib, torch, fastscape as fs
from fastscape import zoo
from fastscape.ops import _native, _tasks
from torch.nn import functional as F
if _native.library.available:
    assert _native.library.set_isa("{isa}") == "{isa}"
torch.manual_seed(0)
digest = hashlib.sha256()
for normalize, distribution in (("tensor", "gaussian"), ("filter", "rademacher"), ("element", "gaussian")):
    for path in ("loop", "vmap"):
        objective = fs.Objective(zoo.mlp(activation="tanh"), zoo.digits(samples=64), criterion=F.cross_entropy)
        directions = fs.Directions(objective, 3, seed=2**63 + 1, normalize=normalize, distribution=distribution)
        found = fs.responses(objective, directions, [1e-4, 1e-2], path=path)
        digest.update(found.even.tobytes() + found.odd.tobytes())
        digest.update(b"".join(t.numpy().tobytes() for t in directions[2].values()))
print(digest.hexdigest())
"""


@needs_library
def test_the_probe_has_the_same_bits_with_every_instruction_set_and_without():
    """One digest over responses and directions of three normalisations, both paths and both distributions."""
    digests = {}
    isas = [isa for isa in _native.ISAS if _native.ISAS.index(isa) <= _native.ISAS.index(_native.library.isa)]
    for name, isa, mode in [("off", "baseline", "0"), *((isa, isa, "require") for isa in isas)]:
        environment = os.environ | {"FASTSCAPE_NATIVE": mode, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", PROBE.format(isa=isa)], env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        digests[name] = run.stdout.strip()
    assert len(set(digests.values())) == 1, digests


# ---------------------------------------------------------------------------------------- the file of the library


@pytest.fixture
def copied(tmp_path):
    """A copy of the library with the description that a build leaves beside it."""
    path = tmp_path / "_native.so"
    shutil.copy(_native.library.path, path)
    content = path.read_bytes()
    description = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.with_name("_native.so.json").write_text(json.dumps(description))
    return path


def refused(path, words):
    """The library is refused by a warning, or by an ImportError, before the system loads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native.ctypes, "CDLL", lambda name: pytest.fail(f"{name} was loaded"))
        with pytest.warns(RuntimeWarning, match=words) as caught:
            found = _native.load(path, mode="")
        with pytest.raises(ImportError, match=f"FASTSCAPE_NATIVE=require, but .*{words}"):
            _native.load(path, mode="require")
    assert len(caught) == 1
    for part in (str(path), "install fastscape again", "the PyTorch references run instead"):
        assert part in str(caught[0].message)
    assert not found.available


@needs_library
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.1, 0.5, 0.9, 1 - 1e-6])
@pytest.mark.parametrize("described", [True, False])
def test_a_truncated_library_is_refused_before_it_is_loaded(copied, share, described):
    if not described:
        copied.with_name("_native.so.json").unlink()
    size = copied.stat().st_size
    os.truncate(copied, int(share * size))
    if not described and share * size < 64:  # no header: the system's loader says so
        with pytest.warns(RuntimeWarning, match="cannot be used"):
            assert not _native.load(copied, mode="").available
        return
    refused(copied, "were built" if described else "its headers say")


@needs_library
def test_a_changed_bit_is_found_and_every_byte_is_read_once(copied, monkeypatch):
    content = bytearray(copied.read_bytes())
    content[len(content) // 3] ^= 16
    copied.write_bytes(content)
    refused(copied, "has the SHA-256")
    copied.write_bytes(content + b"x")
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("the size alone tells"))
    refused(copied, "bytes, .* were built")


@needs_library
@pytest.mark.parametrize("text", ["", "{", "[]", '{"size": 3}', '"text"'])
def test_a_damaged_description_is_named(copied, text):
    copied.with_name("_native.so.json").write_text(text)
    if text == '{"size": 3}':
        refused(copied, "3 were built")
    else:
        refused(copied, "cannot be compared with what was built")


@needs_library
def test_a_whole_library_is_loaded_with_and_without_a_description(copied):
    assert _native.load(copied, mode="require").available
    copied.with_name("_native.so.json").unlink()
    assert _native.load(copied, mode="require").available


@needs_library
@pytest.mark.parametrize("mode", ["", "require"])
def test_a_package_with_a_truncated_library_answers_by_the_references(tmp_path, mode):
    """In a process of its own, which SIGBUS would end."""
    package = tmp_path / "fastscape"
    shutil.copytree(ROOT / "fastscape", package, ignore=shutil.ignore_patterns("__pycache__"))
    os.truncate(package / "_native.so", (package / "_native.so").stat().st_size // 2)
    program = "import fastscape as fs, torch; print(fs.status().native or 'none', torch.__name__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "FASTSCAPE_NATIVE": mode}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if mode:
        assert run.returncode == 1
        assert "ImportError: FASTSCAPE_NATIVE=require, but" in run.stderr
    else:
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("none")
        assert run.stderr.count("RuntimeWarning") == 1


def test_a_build_writes_the_description_that_the_library_is_compared_with(tmp_path, monkeypatch):
    source = (ROOT / "setup.py").read_text().split("class NativeLibrary")[0]
    monkeypatch.chdir(ROOT)
    names = {}
    exec(compile(source, "setup.py", "exec"), names)
    library = tmp_path / "_native.so"
    library.write_bytes(b"content")
    assert names["describe"](library) == tmp_path / "_native.so.json"
    assert damage_of(library) == ""
    library.write_bytes(b"contenu")
    assert "has the SHA-256" in damage_of(library)
