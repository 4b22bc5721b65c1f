"""Kernels of a few PTX instructions, to run one of them on chosen words."""

from dataclasses import dataclass

import numpy as np

from ptx.simulator import launch

WORD, LONG = 2**32, 2**64
TEMPLATE = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry snippet({parameters})
.reqntid {threads}
{{
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<24>;
    .reg .b64 %d<24>;
    .shared .align 16 .b8 tile[{shared}];
    mov.u32 %r20, %tid.x;
    {addresses}
    {body}
    ret;
}}
"""


@dataclass(frozen=True)
class Snippet:
    """A body of PTX as a kernel: %r20 is the thread, %d10, %d11, ... are the addresses of its elements of the arrays."""

    ptx: str
    name: str = "snippet"
    num_warps: None = None
    shared: int = 0
    hidden: int = 0


def execute(body, *arrays, threads=None, shared=1024, **options):
    """The arrays after ``body`` ran in one block."""
    threads = threads or len(arrays[0])
    addresses = "".join(
        f"ld.param.u64 %d{k}, [a{k}]; mad.wide.u32 %d1{k}, %r20, {array.itemsize}, %d{k};\n" for k, array in enumerate(arrays)
    )
    parameters = ", ".join(f".param .u64 a{k}" for k in range(len(arrays)))
    text = TEMPLATE.format(parameters=parameters, threads=threads, shared=shared, addresses=addresses, body=body)
    return launch(Snippet(text), 1, arrays, **options).arrays


def signed(value, bits=32):
    value %= 2**bits
    return value - 2**bits if value >> (bits - 1) else value


def random_words(dtype=np.uint32, seed=0, count=512):
    """Random words, a third of them small, and the extremes."""
    generator = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    words = generator.integers(0, info.max, count, dtype=dtype, endpoint=True)
    words = np.where(generator.random(count) < 1 / 3, generator.integers(0, 70, count, dtype=dtype), words)
    words[:4] = 0, 1, info.max, info.max // 2 + 1
    return generator.permutation(words)
