"""Kernels compile without a driver, for every chip, with their resources; a job that fails says why and harms no other."""

import os

import pytest

from ptx import aot
from ptx.aot import CompileFailure, CudaJob, compile_in_subprocess, compile_triton
from ptx.samples import ARCHS, CUDA_SOURCE, samples


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", samples(80))
def test_every_kernel_fits_every_chip(compiled, name, arch):
    kernel = compiled(name, arch)
    assert kernel.arch == arch
    assert f".target sm_{arch}" in kernel.ptx
    assert f".entry {kernel.name}(" in kernel.ptx
    assert kernel.cubin.startswith(b"\x7fELF")
    assert 8 <= kernel.registers <= 255
    assert kernel.spill_stores == kernel.spill_loads == 0
    assert kernel.shared <= aot.MAX_SHARED[arch]
    assert kernel.sass_instructions >= 15


@pytest.mark.parametrize("arch", ARCHS)
def test_resources_are_those_of_the_kernel(compiled, arch):
    assert compiled("add", arch).shared == 0
    assert compiled("block_sums", arch).shared == 8 * 4  # one float64 for each of four warps
    assert compiled("dot", arch).shared == 8 * 128
    assert compiled("matmul tf32", arch).shared == 2 * (32 * 32 + 32 * 32) * 4  # two tiles in flight
    assert compiled("mixed", arch).stack == 4 * 10
    assert compiled("add", arch).num_warps == 4
    assert compiled("dot", arch).num_warps is None
    assert compiled("root", arch).sass_instructions > compiled("fused root", arch).sass_instructions


def test_scarce_registers_spill(compiled):
    kernel, free = compiled("few registers"), compiled("matmul ieee", 80)
    assert kernel.registers <= 32 < free.registers
    assert kernel.spill_stores > 0
    assert kernel.spill_loads > 0
    assert kernel.stack > 0
    assert kernel.sass_instructions > free.sass_instructions


def test_sass_instructions_are_counted_to_the_padding():
    listing = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;     /* 0x00000a0000017a02 */
                                                              /* 0x000fe40000000f00 */
        /*0010*/                   NOP;                       /* 0x0000000000007918 */
        /*0020*/              @!P0 BRA 0x10;                  /* 0xffffffe000008947 */
        /*0030*/                   EXIT ;                     /* 0x000000000000794d */
        /*0040*/                   BRA 0x40;                  /* 0xfffffff000007947 */
        /*0050*/                   NOP;                       /* 0x0000000000007918 */
        /*0060*/                   NOP;                       /* 0x0000000000007918 */
    """
    assert aot.count_instructions(listing) == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such text", "mutate must name a text that occurs once, got 0 times 'tl.umulhi(word, 1)'"),
        ("ambiguous text", "mutate must name a text that occurs once, got 2 times '0xD2511F53'"),
        ("no such kernel", "has no attribute 'absent'"),
        ("missing argument", "missing ['y', 'out', 'n']"),
        ("no choice of kernel", "name must be one of ['dot', 'mixed', 'one_sided'], got None"),
        ("no CUDA", 'identifier "nothing" is undefined'),
    ],
)
def test_a_failed_job_says_why(outcomes, name, message):
    assert isinstance(outcomes[name], CompileFailure)
    assert message in outcomes[name].error


def test_a_crash_costs_its_own_job_alone(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    pytest.importorskip("cuda.bindings")
    (tmp_path / "crashing.py").write_text("import os\nos._exit(7)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    crash = aot.TritonJob("crashing:kernel", {}, {}, 80)
    first, last = CudaJob(CUDA_SOURCE, 80, "dot"), CudaJob(CUDA_SOURCE, 90, "dot")
    results = compile_in_subprocess([first, crash, last], tmp_path)
    assert [type(result) for result in results] == [aot.Compiled, CompileFailure, aot.Compiled]
    assert "status 7" in results[1].error
    assert [results[0].arch, results[2].arch] == [80, 90]


def test_a_compiler_without_end_is_skipped_by_its_processor_time(tmp_path, monkeypatch):
    (tmp_path / "endless.py").write_text("while True:\n    pass\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="more than 1 s of processor time"):
        compile_in_subprocess([aot.TritonJob("endless:kernel", {}, {}, 80)], tmp_path, processor=1)


def test_the_interpreter_cannot_compile(monkeypatch):
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET must be unset"):
        compile_triton(None, {}, {}, arch=80)
