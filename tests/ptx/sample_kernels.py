"""Small Triton kernels on which the test tools themselves are tested."""

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    total = tl.load(x + index, mask=mask) + tl.load(y + index, mask=mask)
    tl.store(out + index, total, mask=mask)


@triton.jit
def block_sums(x, out, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + index, mask=index < n, other=0.0).to(tl.float64)
    tl.store(out + tl.program_id(0), tl.sum(values))


@triton.jit
def hashed(out, n, key, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = index.to(tl.uint32)
    high = tl.umulhi(word, 0xD2511F53)
    tl.store(out + index, high ^ (word * 0xD2511F53) ^ key.to(tl.uint32), mask=index < n)


@triton.jit
def gather(table, out, n, BLOCK: tl.constexpr):
    source = tl.load(table + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    index = tl.arange(0, BLOCK)
    mask = index < n
    tl.store(out + tl.program_id(0) * n + index, tl.load(source + index, mask=mask), mask=mask)


@triton.jit
def root(x, y, z, out, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + index, tl.sqrt_rn(tl.load(x + index) * tl.load(y + index) + tl.load(z + index)))


@triton.jit
def matmul(a, b, c, K, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr):
    row, column, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, STEP)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, K, STEP):
        left = tl.load(a + row[:, None] * K + start + inner[None, :])
        right = tl.load(b + (start + inner)[:, None] * N + column[None, :])
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(c + row[:, None] * N + column[None, :], total)


@triton.jit
def transpose(x, out, N: tl.constexpr):
    row, column = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    tl.store(out + row * N + column, tl.trans(tl.load(x + row * N + column)))


@triton.jit
def count(x, out, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out + tl.load(x + index, mask=index < n, other=0), 1, mask=index < n)
