"""Shuffles, matrices, atomics, asynchronous copies, races and faults, in kernels of a few PTX instructions."""

import numpy as np
import pytest

from ptx.simulator import DivergenceError, MisalignedError, OutOfBoundsError, RaceError, SimulationError
from ptx.snippets import WORD, execute, random_words, signed


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize(("width", "step"), [(32, 5), (8, 3), (16, 9)])
def test_shuffles(mode, width, step):
    """By the manual: bits 8 to 12 of the last operand are the segment mask, bits 0 to 4 the clamp."""
    segment = 32 - width
    packed = segment << 8 | (2 if mode == "up" else 31)
    words = random_words(count=64)
    body = f"""ld.global.u32 %r0, [%d10]; shfl.sync.{mode}.b32 %r1|%p0, %r0, {step}, {packed}, -1;
        st.global.u32 [%d11], %r1; selp.b32 %r2, 1, 0, %p0; st.global.u32 [%d12], %r2;"""
    _, values, valid = execute(body, words, 0 * words, 0 * words)
    for thread in range(64):
        lane = thread % 32
        low = lane & segment
        high = low | (packed & 31 & ~segment)
        b = step & ~segment if mode == "idx" else step
        source, inside = {
            "up": (lane - b, lane - b >= high),
            "down": (lane + b, lane + b <= high),
            "bfly": (lane ^ b, (lane ^ b) <= high),
            "idx": (low | b, (low | b) <= high),
        }[mode]
        assert valid[thread] == inside
        assert values[thread] == words[thread - lane + source if inside else thread]


def test_votes_and_reductions():
    words = random_words(count=64)
    body = """ld.global.u32 %r0, [%d10]; and.b32 %r1, %r0, 1; setp.ne.b32 %p0, %r1, 0;
        vote.sync.ballot.b32 %r2, %p0, -1; st.global.u32 [%d11], %r2;
        redux.sync.min.s32 %r3, %r0, -1; st.global.u32 [%d12], %r3;
        redux.sync.xor.b32 %r4, %r0, -1; st.global.u32 [%d13], %r4;"""
    _, ballots, least, parity = execute(body, words, *(0 * words for _ in range(3)))
    for warp in range(2):
        mine = [int(word) for word in words[32 * warp : 32 * warp + 32]]
        chosen = slice(32 * warp, 32 * warp + 32)
        assert set(ballots[chosen].tolist()) == {sum((word & 1) << lane for lane, word in enumerate(mine))}
        assert set(least[chosen].tolist()) == {min(signed(word) for word in mine) % WORD}
        assert set(parity[chosen].tolist()) == {int(np.bitwise_xor.reduce(words[chosen]))}


ROWS = "and.b32 %r9, %r20, 15; shl.b32 %r9, %r9, 4; add.u32 %r9, %r9, tile;"  # lanes 0 to 15: rows of 16 bytes


@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_stores_and_loads(transposed):
    matrices = np.random.default_rng(0).integers(0, 2**16, (2, 8, 8)).astype(np.uint16)
    fragments = matrices.view(np.uint32).reshape(2, 32)  # lane 4r + c holds columns 2c and 2c + 1 of row r
    trans = ".trans" if transposed else ""
    body = f"""ld.global.u32 %r0, [%d10]; ld.global.u32 %r1, [%d11]; {ROWS}
        stmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 [%r9], {{%r0, %r1}}; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r2, %r3}}, [%r9];
        st.global.u32 [%d12], %r2; st.global.u32 [%d13], %r3;
        shl.b32 %r8, %r20, 3; add.u32 %r8, %r8, tile; ld.shared.b64 %d5, [%r8]; st.global.b64 [%d14], %d5;"""
    arrays = [fragments[0].copy(), fragments[1].copy(), *np.zeros((2, 32), np.uint32), np.zeros(32, np.uint64)]
    *_, first, second, stored = execute(body, *arrays)
    expected = matrices.swapaxes(1, 2) if transposed else matrices
    np.testing.assert_array_equal(stored.view(np.uint16).reshape(2, 8, 8), expected)
    np.testing.assert_array_equal(np.stack([first, second]).view(np.uint16).reshape(2, 8, 8), expected)


def test_matrix_product_of_float64():
    a, b, c = (
        np.random.default_rng(seed).integers(-9, 9, size).astype(float) for seed, size in enumerate([(8, 4), (4, 8), (8, 8)])
    )
    body = """ld.global.b64 %d0, [%d10]; ld.global.b64 %d1, [%d11]; mad.wide.u32 %d2, %r20, 8, %d12;
        ld.global.v2.b64 {%d3, %d4}, [%d2];
        mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d5, %d6}, {%d0}, {%d1}, {%d3, %d4};
        st.global.v2.b64 [%d2], {%d5, %d6};"""
    out = execute(body, a, b.T.copy(), c, threads=32)[2]
    np.testing.assert_array_equal(out, a @ b + c)


def test_atomics_return_old_values_in_the_order_of_threads():
    keys = (np.arange(96) % 3).astype(np.uint32)
    body = """ld.global.u32 %r0, [%d10]; mad.wide.u32 %d6, %r0, 4, %d1;
        atom.global.gpu.relaxed.add.u32 %r1, [%d6], 2; st.global.u32 [%d12], %r1; atom.global.max.s32 _, [%d6+12], %r20;
        atom.global.cas.b32 %r2, [%d6+24], 0, %r20; atom.global.inc.u32 %r3, [%d6+36], 4;
        red.global.add.f32 [%d6+48], 0f3F000000;"""
    _, counters, old = execute(body, keys, np.zeros(15, np.uint32), np.zeros(96, np.uint32))
    assert counters[:12].tolist() == [64, 64, 64, 93, 94, 95, 3, 1, 2, 2, 2, 2]
    assert counters[12:].view(np.float32).tolist() == [16, 16, 16]
    assert old.tolist() == (np.arange(96) // 3 * 2).tolist()


def test_asynchronous_copies_wait_by_thread_and_group():
    """The second group may still be under way; a size of 4 fills the rest with zeros."""
    body = """shl.b32 %r9, %r20, 4; add.u32 %r9, %r9, tile;
        mad.wide.u32 %d6, %r20, 12, %d10; mad.wide.u32 %d7, %r20, 12, %d11;
        cp.async.cg.shared.global [%r9], [%d6], 16, 4; cp.async.commit_group;
        cp.async.cg.shared.global [%r9+512], [%d6], 16; cp.async.commit_group;
        cp.async.wait_group 1; ld.shared.v4.b32 {%r0, %r1, %r2, %r3}, [%r9+OFFSET];
        st.global.v4.b32 [%d7], {%r0, %r1, %r2, %r3};"""
    words = random_words(count=128)
    out = execute(body.replace("OFFSET", "0"), words, 0 * words + 1, threads=32)[1]
    np.testing.assert_array_equal(out.reshape(32, 4), words.reshape(32, 4) * [1, 0, 0, 0])
    with pytest.raises(RaceError, match="has not delivered"):
        execute(body.replace("OFFSET", "512"), words, 0 * words, threads=32)
    late = body.replace("OFFSET", "512").replace("wait_group 1", "wait_all")
    np.testing.assert_array_equal(execute(late, words, 0 * words, threads=32)[1], words)


def test_a_wait_is_for_the_threads_that_wait():
    body = """shl.b32 %r9, %r20, 2; add.u32 %r9, %r9, tile; cp.async.ca.shared.global [%r9], [%d10], 4; cp.async.commit_group;
        setp.lt.u32 %p0, %r20, 8; @%p0 cp.async.wait_all; @READ ld.shared.u32 %r0, [%r9]; @READ st.global.u32 [%d11], %r0;"""
    words = random_words(count=32)
    out = execute(body.replace("@READ", "@%p0"), words, 0 * words)[1]
    np.testing.assert_array_equal(out, np.where(np.arange(32) < 8, words, 0))
    with pytest.raises(RaceError, match="has not delivered"):
        execute(body.replace("@READ", ""), words, 0 * words)


def test_an_access_that_leaves_its_array_half_way():
    with pytest.raises(OutOfBoundsError, match="8 bytes of global memory outside every array"):
        execute("ld.global.v2.u32 {%r0, %r1}, [%d0+256];", np.zeros(65, np.uint32), threads=1)


OWN_WORD = "shl.b32 %r9, %r20, 2; add.u32 %r9, %r9, tile;"
OTHER_WORD = "xor.b32 %r8, %r20, 32; shl.b32 %r8, %r8, 2; add.u32 %r8, %r8, tile;"  # of the thread in the other warp
FIRST_WARP = "setp.lt.u32 %p0, %r20, 32;"
RACES = {
    "read after write": "st.shared.u32 [%r9], %r20; ld.shared.u32 %r0, [%r8];",
    "write after read": "ld.shared.u32 %r0, [%r9]; st.shared.u32 [%r8], %r20;",
    "write after write": "st.shared.u32 [%r9], %r20; st.shared.u32 [%r8], %r20;",
    "write after the reads of both": "ld.shared.u32 %r0, [tile]; setp.gt.u32 %p0, %r20, 62; @%p0 st.shared.u32 [tile], %r20;",
    "write after both read in turn": (
        f"{FIRST_WARP} @%p0 ld.shared.u32 %r0, [tile]; @!%p0 ld.shared.u32 %r0, [tile]; @!%p0 st.shared.u32 [tile], 7;"
    ),
    "both write at once": "st.shared.u32 [tile], %r20;",
    "read after an atomic": "atom.shared.add.u32 %r0, [tile], 1; ld.shared.u32 %r1, [tile];",
    "two global values": "st.global.u32 [%d0], %r20;",
}
ORDERED = {
    "own words": "st.shared.u32 [%r9], %r20; ld.shared.u32 %r0, [%r9]; st.shared.u32 [%r9], %r0;",
    "barrier": "st.shared.u32 [%r9], %r20; bar.sync 0; ld.shared.u32 %r0, [%r8]; bar.sync 0; st.shared.u32 [%r8], %r0;",
    "one value": "st.shared.u32 [tile], 7; bar.sync 0; ld.shared.u32 %r0, [tile];",
    "neighbouring bytes": (
        f"{FIRST_WARP} mul.lo.u32 %r7, %r20, 9; and.b32 %r7, %r7, 63; add.u32 %r7, %r7, tile;"
        "@%p0 st.shared.b8 [%r7], %r20; @!%p0 st.shared.b8 [%r7], 7;"
    ),
    "atomics": "atom.shared.add.u32 %r0, [tile], %r20; bar.sync 0; ld.shared.u32 %r1, [tile];",
}


@pytest.mark.parametrize("name", RACES)
def test_races_are_caught(name):
    with pytest.raises(RaceError):
        execute(f"{OWN_WORD} {OTHER_WORD} {RACES[name]}", np.zeros(64, np.uint32))


@pytest.mark.parametrize("name", ORDERED)
def test_ordered_accesses_are_no_races(name):
    execute(f"{OWN_WORD} {OTHER_WORD} {ORDERED[name]}", np.zeros(64, np.uint32))


FAULTS = {
    "ld.global.u32 %r0, [%d0+2];": (MisalignedError, r"global access.*not a multiple of 4 bytes at `ld\.global\.u32"),
    "ld.global.v2.u32 {%r0, %r1}, [%d0+4];": (MisalignedError, "not a multiple of 8 bytes"),
    "st.shared.v4.b32 [tile+8], {%r0, %r1, %r2, %r3};": (MisalignedError, "shared access"),
    "ld.global.u32 %r0, [%d10+4];": (OutOfBoundsError, "byte 256 of array 0, which has 256"),
    "ld.global.u32 %r0, [%d0+-4];": (OutOfBoundsError, "byte -4 of array 0"),
    "ld.shared.u32 %r0, [tile+1024];": (OutOfBoundsError, "4 bytes of shared memory at 1024, which has 1024"),
    "setp.lt.u32 %p0, %r20, 32; @%p0 bar.sync 0;": (DivergenceError, "barrier"),
    "setp.lt.u32 %p0, %r20, 32; @%p0 bra DONE; bar.sync 0; DONE: mov.u32 %r0, 0;": (DivergenceError, "barrier"),
    "setp.lt.u32 %p0, %r20, 8; @%p0 shfl.sync.bfly.b32 %r0, %r20, 16, 31, -1;": (DivergenceError, "shuffle"),
    "setp.lt.u32 %p0, %r20, 8; @%p0 redux.sync.add.u32 %r0, %r20, -1;": (DivergenceError, "warp-wide"),
    "trap;": (SimulationError, "trap at `trap`"),
    "LOOP: add.u32 %r0, %r0, 1; bra LOOP;": (SimulationError, "more than 50 instructions"),
    "add.cc.u32 %r0, %r0, 1;": (NotImplementedError, r"PTX instruction `add\.cc\.u32"),
    "add.rn.bf16 %h0, %h1, %h2;": (NotImplementedError, "add.rn.bf16"),
    "mov.u32 %r0, %clock;": (NotImplementedError, "PTX operand %clock"),
    "mov.u32 %r0, elsewhere;": (NotImplementedError, "PTX operand elsewhere"),
}


@pytest.mark.parametrize("body", FAULTS)
def test_faults_name_the_instruction(body):
    error, message = FAULTS[body]
    with pytest.raises(error, match=message):
        execute(body, np.zeros(64, np.uint32), limit=50)


def test_what_nobody_wrote_is_not_zero():
    body = """ld.shared.u32 %r0, [tile]; st.global.u32 [%d10], %r0;
        setp.lt.u32 %p0, %r20, 1; @%p0 mov.u32 %r1, 5; st.global.u32 [%d11], %r1;"""
    shared, register = execute(body, np.zeros(2, np.uint32), np.zeros(2, np.uint32))
    assert shared.tolist() == [WORD - 1, WORD - 1]
    assert register.tolist() == [5, WORD - 1]


def test_diverged_threads_join_again():
    """Collatz steps, a different number for each thread, then a barrier; 40 threads are no whole number of warps."""
    body = f"""add.u32 %r0, %r20, 1; mov.u32 %r1, 0;
        LOOP: setp.le.u32 %p0, %r0, 1; @%p0 bra DONE; add.u32 %r1, %r1, 1; and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0;
        @%p1 bra EVEN; mad.lo.u32 %r0, %r0, 3, 1; bra.uni LOOP; EVEN: shr.u32 %r0, %r0, 1; bra.uni LOOP;
        DONE: {OWN_WORD} st.shared.u32 [%r9], %r1; bar.sync 0; sub.u32 %r3, 39, %r20; shl.b32 %r3, %r3, 2; add.u32 %r3, %r3, tile;
        ld.shared.u32 %r4, [%r3]; st.global.u32 [%d10], %r4;"""

    def steps(n):
        return 0 if n <= 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    assert execute(body, np.zeros(40, np.uint32))[0].tolist() == [steps(n + 1) for n in range(40)][::-1]
