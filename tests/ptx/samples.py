"""The jobs whose kernels the tests of the test tools run."""

from pathlib import Path

from ptx.aot import CudaJob, TritonJob

ARCHS = (80, 90, 100)
CUDA_SOURCE = Path(__file__).with_name("sample_kernels.cu")


def triton_job(kernel, arch, types, constexprs, divisible=(), mutate=None, **options):
    return TritonJob(f"ptx.sample_kernels:{kernel}", types, constexprs, arch, divisible, options, mutate)


def matmul(arch, element="*fp32", precision="tf32", size=32, **options):
    types = {"a": element, "b": element, "c": "*fp32", "K": "i32"}
    constexprs = {"M": size, "N": size, "STEP": 32, "PRECISION": precision}
    return triton_job("matmul", arch, types, constexprs, ("a", "b", "c", "K"), num_stages=3, **options)


def add(arch, mutate=None):
    types = {"x": "*fp32", "y": "*fp32", "out": "*fp32", "n": "i32"}
    return triton_job("add", arch, types, {"BLOCK": 256}, ("x", "y", "out"), mutate)


def hashed(arch, mutate=None):
    return triton_job("hashed", arch, {"out": "*u32", "n": "i32", "key": "i32"}, {"BLOCK": 256}, mutate=mutate)


def root(arch, fused):
    arrays = dict.fromkeys(("x", "y", "z", "out"), "*fp32")
    return triton_job("root", arch, arrays, {"BLOCK": 256}, tuple(arrays), enable_fp_fusion=fused)


def samples(arch):
    """The kernels that run on every chip."""
    return {
        "add": add(arch),
        "block_sums": triton_job("block_sums", arch, {"x": "*fp32", "out": "*fp64", "n": "i32"}, {"BLOCK": 1024}),
        "hashed": hashed(arch),
        "gather": triton_job("gather", arch, {"table": "*i64", "out": "*fp32", "n": "i32"}, {"BLOCK": 256}),
        "root": root(arch, fused=False),
        "fused root": root(arch, fused=True),
        "matmul tf32": matmul(arch),
        "matmul bf16": matmul(arch, "*bf16"),
        "matmul ieee": matmul(arch, precision="ieee"),
        "transpose": triton_job("transpose", arch, {"x": "*bf16", "out": "*bf16"}, {"N": 64}, ("x", "out")),
        "count": triton_job("count", arch, {"x": "*i32", "out": "*i32", "n": "i32"}, {"BLOCK": 256}),
        "dot": CudaJob(CUDA_SOURCE, arch, "dot"),
        "mixed": CudaJob(CUDA_SOURCE, arch, "mixed"),
    }


LOADS = "total = tl.load(x + index, mask=mask) + tl.load(y + index, mask=mask)"
SPECIAL = {
    "unmasked loads": add(80, (LOADS, LOADS.replace(", mask=mask", ""))),
    "unmasked store": add(80, ("tl.store(out + index, total, mask=mask)", "tl.store(out + index, total)")),
    "other constant": hashed(80, ("tl.umulhi(word, 0xD2511F53)", "tl.umulhi(word, 0xC2511F53)")),
    "matmul f16": matmul(80, "*fp16"),
    "wgmma": matmul(90, "*fp16", size=64),
    "few registers": matmul(80, precision="ieee", maxnreg=32),
    "one-sided barrier": CudaJob(CUDA_SOURCE, 80, "one_sided"),
    "unsynchronised dot": CudaJob(
        CUDA_SOURCE, 80, "dot", mutate=("part[threadIdx.x] = sum;\n    __syncthreads();", "part[threadIdx.x] = sum;")
    ),
    "no such text": hashed(80, ("tl.umulhi(word, 1)", "")),
    "ambiguous text": hashed(80, ("0xD2511F53", "1")),
    "no such kernel": triton_job("absent", 80, {}, {}),
    "missing argument": triton_job("add", 80, {"x": "*fp32"}, {"BLOCK": 256}),
    "no choice of kernel": CudaJob(CUDA_SOURCE, 80),
    "no CUDA": CudaJob(CUDA_SOURCE, 80, "dot", mutate=("double sum = 0;", "double sum = nothing;")),
}
