"""Products of an objective's curvature matrix with blocks of vectors, over all batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from fastscape._clock import now
from fastscape._state import exact_arithmetic, plain_arithmetic
from fastscape.curvature.choice import (
    BLOCK,
    CAP,
    HOPELESS,
    ROUNDS,
    SLOW,
    Candidate,
    NoPathError,
    ProductChoice,
    Trial,
    best,
    settle,
    synchronise,
)
from fastscape.curvature.compiled import CompiledPath
from fastscape.curvature.forward import ForwardPath, ReplayPath
from fastscape.curvature.ggn import GaussNewtonForward, GaussNewtonGraph, GaussNewtonReplay
from fastscape.curvature.gradient_difference import DifferencePath
from fastscape.curvature.paths import ProductPath
from fastscape.curvature.peak import give_back, peak_bytes
from fastscape.curvature.program import Program
from fastscape.curvature.reverse import GraphPath, Graphs, ReversePath
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.evaluation.points import Array
from fastscape.objective.batches import available_memory
from fastscape.objective.objective import Objective
from fastscape.objective.structures import tensors_of

Matrix = Literal["hessian", "ggn"]
PathName = Literal["graph", "graph, batched", "forward", "replay", "reverse", "gradient difference", "channels-last"]
_SCARCE = 0.1  # of the memory for a computation: a vector above this is not made for a trial if one is there
FUNCTIONAL = ("forward", "replay")  # paths that put parameters in place by name
_OVERFLOW = 1e36  # norm of a product with signs above which float32 may not hold products
_REPLAY_AFTER = 500.0  # gradients' worth of products after which linearising, of 20 to 500, may pay


class Products:
    """Multiply blocks of rows with the curvature of an objective at the weights it has when this is made.

    Args:
        objective: the loss.
        matrix: ``"hessian"`` or ``"ggn"``.
        path: a path by name, or ``None`` to try them.
        memory: bytes that a computation may hold beside the vectors and their products.
        compile_: also try the graph compiled.

    Attributes:
        program: the loss on a private copy.
        choices: what was chosen, by vectors in a block (at most 8).
        products, nan_products: vectors multiplied so far, trials included; those with NaN or inf in the product.
        gradient_seconds, gradient_peak: seconds of a gradient of the largest batch, and bytes alive in it.
        dtype: of the products: the objective's, float32 for half precision; float64 where they overflow in float32.
        notes: what a reader must know of the products, in words.
    """

    def __init__(
        self, objective: Objective, matrix: Matrix, path: PathName | None, memory: int | None, *, compile_: bool = False
    ) -> None:
        self.objective, self.matrix, self.path, self.compile = objective, matrix, path, compile_
        half = objective.dtype in (torch.float16, torch.bfloat16)
        self.dtype = torch.float32 if half else objective.dtype
        self.capped, self.memory = memory is not None, memory or 0
        self._available = memory if memory is not None else available_memory(objective.device) // 2
        self.work = self.dtype  # they are computed in
        self.limit = self._room(self.work)
        self.notes: tuple[str, ...] = ()
        self._borne_out: set[str] = set()
        self.choices: dict[int, ProductChoice] = {}
        self.products = self.nan_products = 0
        self.gradient_seconds = math.nan
        self.gradient_peak = 0
        self._chosen: dict[int, Candidate] = {}
        self._spent: dict[int, float] = {}
        self._thorough: set[int] = set()
        self._inside: torch.dtype | None = None
        with self.arithmetic():
            self.program = Program(objective, self.work)
            unperturbed_loss(self.program.replica)
            if self.program.narrow is not None and self.work == torch.float32:
                self._drop_autocast(self.program.narrow[0])

    def _room(self, dtype: torch.dtype) -> float:
        """Bytes for a computation beside the private copy and a vector."""
        copies = self.objective.size * torch.finfo(dtype).bits // 8
        room = CAP * self._available - 2 * copies
        if room <= 0:
            least = math.ceil(2 * copies / CAP)
            raise ValueError(
                f"memory must hold a copy of the parameters and a vector, {least} bytes, and what a gradient takes, got "
                f"{self._available:.0f}; raise memory="
            )
        return room

    def _drop_autocast(self, narrow: torch.dtype) -> None:
        """Go on in float64 where that takes the rounding inside away: torch's autocast casts float32, and never float64."""
        with plain_arithmetic(torch.float64):
            wide = Program(self.objective, torch.float64)
        if wide.narrow is None:
            self._widen(
                wide, f"curvature in float64, without your autocast to {str(narrow)[6:]}, whose rounding has no derivatives"
            )

    def _widen(self, program: Program, note: str) -> None:
        """Multiply with a program in float64 from now on."""
        self.limit = self._room(torch.float64)
        self.work, self.program = torch.float64, program
        self.notes = (*self.notes, note)
        self.gradient_seconds = math.nan
        self._chosen.clear()
        self.choices.clear()
        self._thorough.clear()
        self._borne_out.clear()

    @contextmanager
    def arithmetic(self, *, draws: bool = True) -> Iterator[None]:
        """Plain arithmetic of the dtype and the process as it was afterwards; nested blocks cost nothing.

        Without ``draws``, random generators are not kept (half of the 0.1 ms): for what runs no code of the user's.
        """
        outer = self._inside
        if outer == self.work:
            yield
            return
        self._inside = self.work
        try:
            with exact_arithmetic(self.work) if draws and outer is None else plain_arithmetic(self.work):
                yield
        finally:
            self._inside = outer

    # ------------------------------------------------------------------ multiplying

    def multiply(self, rows: Tensor) -> Tensor:
        """Products ``[K, D]`` of rows ``[K, D]``, in the dtype of products."""
        self.prepare(len(rows), rows)
        rows = rows.to(self.work)
        out = torch.empty_like(rows)
        self._multiply(rows, out, None)
        return out.to(self.dtype)

    def forms(self, rows: Tensor, *, keep: bool) -> tuple[Tensor | None, Array]:
        """v'H_b v of rows ``[K, D]`` with every batch's own matrix, ``[batches, K]``, and the products if they are to be kept."""
        self.prepare(len(rows), rows)
        rows = rows.to(self.work)
        out = torch.empty_like(rows) if keep else None
        forms = np.zeros((len(self.objective.batches), len(rows)))
        self._multiply(rows, out, forms)
        return None if out is None else out.to(self.dtype), forms

    def _multiply(self, rows: Tensor, out: Tensor | None, forms: Array | None) -> None:
        choice = self.prepare(len(rows), rows)
        candidate = self._chosen[_key(len(rows))]
        with self.arithmetic(draws=len(candidate.built) < len(self.program.weights)):
            start = now()
            self._over_batches(candidate, choice.chunk, rows, out, forms)
            synchronise(rows)
            seconds = now() - start
        self._spend(len(rows), seconds)
        self.products += len(rows)
        if out is not None and not math.isfinite(float(out.sum())):
            self.nan_products += int((~out.sum(1).isfinite()).sum())
        elif forms is not None:
            self.nan_products += int((~np.isfinite(forms).all(0)).sum())

    def _over_batches(self, candidate: Candidate, chunk: int, rows: Tensor, out: Tensor | None, forms: Array | None) -> None:
        program = self._opened()
        shares = self.objective.samples / np.array(self.objective.batch_weights)
        for batch, weight in enumerate(program.weights):
            product = candidate.built.get(batch)
            if product is None:
                product = candidate.path.build(batch)
                if candidate.path.held and self._fits(candidate, len(candidate.built) + 1):
                    candidate.built[batch] = product
            for start in range(0, len(rows), chunk):
                part = rows[start : start + chunk]
                vectors = program.layout.views(part)
                found = product(vectors)
                if out is not None:
                    program.layout.gather(out[start : start + chunk], found, weight, first=batch == 0)
                if forms is not None:
                    whole = program.whole[batch]
                    forms[whole, start : start + chunk] += weight * shares[whole] * _forms(vectors, found)
                del found
            del product

    def release(self) -> None:
        """Free what is kept of batches."""
        for candidate in self._chosen.values():
            candidate.built.clear()

    def _fits(self, candidate: Candidate, batches: int) -> bool:
        return candidate.held * batches + (candidate.peak - candidate.held) <= self.limit

    # ------------------------------------------------------------------ choosing

    def prepare(self, count: int, rows: Tensor | None = None, *, thorough: bool = False) -> ProductChoice:
        """Choose the path for blocks of ``count`` vectors, once; ``thorough`` also tries what takes long to set up."""
        key = _key(count)
        if key not in self._chosen or (thorough and key not in self._thorough):
            with self.arithmetic():
                self._choose(key, rows, thorough=thorough)
        return self.choices[key]

    def _choose(self, key: int, rows: Tensor | None = None, *, thorough: bool) -> None:
        program = self._opened()
        for kept in self._chosen.values():
            kept.built.clear()
        if self.path in FUNCTIONAL and not program.is_functional(self._largest):
            raise ValueError(
                f"path must not be {self.path!r} for this model, which accesses parameters outside named_parameters() (a list, a "
                "closure): they would count as constants; use path='graph' or None"
            )
        vector = program.layout.size * program.leaves[0].element_size()
        given = None
        if rows is not None and vector > _SCARCE * self.limit and math.isfinite(total := float(rows[:1].norm())) and total:
            given = program.layout.views(rows[:1])
        limit = self.limit - (vector if given is None else 0)
        borne_out = self._borne_out if self.matrix == "hessian" else None
        trial = Trial(program, self._largest, limit, self.gradient_seconds, given, borne_out=borne_out)
        found: list[Candidate] = []
        try:
            for make in self._makers(program, key, found, thorough=thorough):
                candidate = trial.attempt(make, key, found)
                if candidate is not None:
                    found.append(candidate)
                    if trial.slow:  # what is not near the fastest goes at once
                        _keep_best(found, within=HOPELESS)
            if found:
                settle(found, self.limit, 1 if trial.slow else ROUNDS)
                _keep_best(found)
        finally:
            self.products += trial.products
        if not found:
            if trial.over_cap and program.halve():
                self._chosen.clear()
                self.gradient_seconds = math.nan
                self._choose(key, rows, thorough=thorough)
                return
            if trial.rounded and self.work == torch.float32 and self._goes_on_in_float64():
                with self.arithmetic():
                    self._choose(key, None if rows is None else rows.double(), thorough=thorough)
                return
            raise trial.asymmetric or self._no_path(trial.refused, over_cap=trial.over_cap)
        if self.dtype != self.work and trial.size > _OVERFLOW:
            self.dtype = self.work
        if trial.note and trial.note not in self.notes:
            self.notes = (*self.notes, trial.note)
        self._chosen[key], self._spent[key] = best(found), 0.0
        if self.capped:
            give_back()
        if thorough or self.path is not None:
            self._thorough.add(key)
        self.choices[key] = self._record(trial, found, key)

    def _goes_on_in_float64(self) -> bool:
        """Open the program in float64, where memory and model allow."""
        try:
            with plain_arithmetic(torch.float64):
                program = Program(self.objective, torch.float64)
            self._widen(program, "products in float64: float32 does not hold them")
        except Exception:  # a model that is bound to float32
            return False
        return True

    def _makers(
        self, program: Program, key: int, found: Sequence[Candidate], *, thorough: bool
    ) -> Iterator[Callable[[], ProductPath]]:
        """Paths to try, in order; ``found`` grows meanwhile."""
        if self.path is not None:
            yield self._named(program)[self.path]
            return
        named = self._named(program)
        yield named["graph"]
        if key > 1:
            yield named["graph, batched"]
        if not found or (key > 1 and thorough):  # its arithmetic is no less than the graph's, and its setup is paid every time
            yield named["forward"]
        if found and self.compile:
            yield lambda: CompiledPath(program, key)
        if thorough:
            yield named["replay"]
            if self.matrix == "hessian" and any(leaf.ndim == 4 for leaf in program.leaves):
                yield named["channels-last"]
        for last in ("reverse", "gradient difference"):  # slower than what keeps a graph, always
            if not found and last in named:
                yield named[last]

    def _named(self, program: Program) -> dict[str, Callable[[], ProductPath]]:
        if self.matrix == "ggn":
            return {
                "graph": lambda: GaussNewtonGraph(program, batched=False),
                "graph, batched": lambda: GaussNewtonGraph(program, batched=True),
                "forward": lambda: GaussNewtonForward(program),
                "replay": lambda: GaussNewtonReplay(program),
            }
        graphs: Graphs = WeakValueDictionary()
        return {
            "graph": lambda: GraphPath(program, batched=False, graphs=graphs),
            "graph, batched": lambda: GraphPath(program, batched=True, graphs=graphs),
            "forward": lambda: ForwardPath(program),
            "reverse": lambda: ReversePath(program),
            "replay": lambda: ReplayPath(program),
            "channels-last": lambda: GraphPath(
                Program(self.objective, self.work, channels_last=True), batched=False, name="channels-last"
            ),
            "gradient difference": lambda: DifferencePath(program),
        }

    def _opened(self) -> Program:
        """The program; on first use a gradient is timed."""
        program = self.program
        if math.isnan(self.gradient_seconds):
            self._largest = max(range(len(program.weights)), key=lambda index: _input_bytes(program, index))
            self.gradient_peak = peak_bytes(lambda: program.gradient(self._largest))[1]
            times: list[float] = []
            while len(times) < 2 or (len(times) < 5 and times[0] < SLOW):
                start = now()
                synchronise(program.gradient(self._largest)[0])
                times.append(now() - start)
            self.gradient_seconds = min(times)
        return program

    def _record(self, trial: Trial, found: Sequence[Candidate], key: int) -> ProductChoice:
        chosen = best(found)
        seconds = {candidate.path.name: candidate.seconds for candidate in found}
        chunk = min(trial.chunk(chosen), key)
        others = [f"{name} is {time / chosen.seconds:.1f}x slower" for name, time in seconds.items() if name != chosen.path.name]
        others += [f"{name}: {why}" for name, why in trial.refused.items()]
        if len(self.program.weights) > len(self.objective.batches):
            others.append(f"batches are cut in {len(self.program.weights)} parts to fit in memory")
        return ProductChoice(
            name=chosen.path.name,
            chunk=chunk,
            gradients=chosen.seconds / self.gradient_seconds,
            gradient_seconds=self.gradient_seconds,
            seconds=seconds,
            peak=chosen.peak + (chunk - 1) * chosen.slope,
            refused=dict(trial.refused),
            error=max(getattr(chosen.path, "error", 0.0) or 0.0, self._unit_inside()),
            asymmetry=trial.asymmetry,
            reason="asked for" if self.path is not None else "; ".join(others) or "the only one tried",
        )

    def _unit_inside(self) -> float:
        """Relative error of products through a rounding inside the model, which derivatives pass over."""
        narrow = self.program.narrow
        return 0.0 if narrow is None else torch.finfo(narrow[0]).eps

    def _no_path(self, refused: dict[str, str], *, over_cap: bool) -> Exception:
        tried = "; ".join(f"{name}: {why}" for name, why in refused.items())
        if self.path is not None:
            remain = [name for name in self._named(self._opened()) if name != self.path]
            return ValueError(f"path must be one that runs this model, got {tried}; path=None tries {', '.join(remain)}")
        if over_cap and self.capped:
            return NoPathError(
                f"memory must hold a computation of products, got {self.memory / 2**20:.3g} MiB for a gradient of "
                f"{self.gradient_peak / 2**20:.3g} MiB: {tried}; raise memory= to three gradients' or more, or pass smaller "
                "batches"
            )
        advice = (
            "use fs.hessian"
            if self.matrix == "ggn"
            else "fs.quadratic_forms needs no backward pass, and float64 makes differences exact"
        )
        return NoPathError(f"no path multiplies with the {_WORDS[self.matrix]} of this model: {tried}; {advice}")

    def _spend(self, count: int, seconds: float) -> None:
        """Try what takes long to set up once the products so far have cost as much as it may."""
        key = _key(count)
        self._spent[key] += seconds
        patient = key in self._thorough or self.gradient_seconds > SLOW
        if not patient and self._spent[key] > _REPLAY_AFTER * len(self.program.weights) * self.gradient_seconds:
            with self.arithmetic():
                self._choose(key, thorough=True)


_WORDS = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}


def checked_path(path: object) -> PathName | None:
    """A path by name, or ``None``.

    Raises:
        ValueError: another name.
    """
    if path is not None and path not in get_args(PathName):
        raise ValueError(f"path must be one of {', '.join(get_args(PathName))} or None to measure, got {path!r}")
    return path  # type: ignore[return-value]


def _keep_best(candidates: Sequence[Candidate], within: float = 1.0) -> None:
    """Free what candidates keep that take more than ``within`` times the fastest's seconds, or are not it."""
    fastest = best(candidates)
    for candidate in candidates:
        if candidate is not fastest and (candidate.seconds >= within * fastest.seconds or within == 1.0):
            candidate.built.clear()
            candidate.rerun = None


def _key(count: int) -> int:
    return min(max(count, 1), BLOCK)


def _input_bytes(program: Program, batch: int) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(program.replica.batches[batch]))


def _forms(vectors: Sequence[Tensor], products: Sequence[Tensor]) -> Array:
    """V'Hv of a block ``[K]``, in float64."""
    total = sum((v * p).reshape(len(v), -1).sum(1, dtype=torch.float64) for v, p in zip(vectors, products, strict=True))
    found: Array = total.cpu().numpy()  # type: ignore[union-attr]
    return found
