"""The spectral probe: eigenvalues, trace, effective rank and density of a curvature matrix from one set of products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack, cast

import torch
from torch import Tensor

from fastscape._checks import amount, check_memory, first_line, integer, one_of, real
from fastscape._keeping import keeps_result
from fastscape.curvature.operator import ggn, hessian
from fastscape.curvature.paths import PathName
from fastscape.curvature.serving import led
from fastscape.curvature.sharded import ShardedHessian
from fastscape.curvature.soundness import AsymmetricProductError
from fastscape.evaluation.group import Distributed, Group, joined
from fastscape.numerics.krylov import least_capacity
from fastscape.objective.batches import available_memory
from fastscape.objective.examination import is_large
from fastscape.objective.objective import Objective, checked_objective
from fastscape.objective.sharding import ShardedModelError, Sharding, needs_whole
from fastscape.probes.spectrum.assembly import spectrum_result
from fastscape.probes.spectrum.memory import BESIDE, basis_fits, free_for_basis, room_for_basis
from fastscape.probes.spectrum.recursions import recursion
from fastscape.probes.spectrum.result import SpectrumResult, SpectrumTrajectory
from fastscape.probes.spectrum.run import SpectralRun
from fastscape.probes.spectrum.stability import Optimizer
from fastscape.probes.spectrum.stability_stage import StabilityStage, least_rows
from fastscape.probes.spectrum.state import Curvature, Goals
from fastscape.runs.anytime import Deadline, PartialResultError
from fastscape.runs.checkpoints import read_optimizer
from fastscape.runs.evaluations import Evaluations, opened
from fastscape.runs.optimizers import OptimizerState
from fastscape.runs.progress import Progress, reporter
from fastscape.runs.run import Resumed, Run, Work, settled

__all__ = ["SpectrumError", "spectrum"]

BLOCK = 4  # three probes and the gradient: twice as many took 1.4 times the products to five eigenvalues on small networks
TARGETS = {"eigenvalues": 1e-3, "trace": 0.05}
_LEAST = 2  # vectors per product: a probe and the gradient
_PRODUCTS = 5  # times the nodes, and 100 blocks: the most products without a budget


class SpectrumError(PartialResultError):
    """The model raised midway. ``partial`` is the result of what had been multiplied, and of the checkpoints before."""

    partial: SpectrumResult | SpectrumTrajectory


class SpectrumKeywords(Work, Resumed, total=False):
    """Keywords beside those of the matrix and what of it is wanted."""

    memory: int | None
    targets: Mapping[str, float | None] | None
    method: str | None
    progress: Callable[[Progress], None] | None


@keeps_result
def spectrum(
    objective: Objective,
    k: int = 5,
    *,
    operator: Literal["hessian", "ggn"] = "hessian",
    block: int | None = None,
    nodes: int = 80,
    warm: SpectrumResult | None = None,
    optimizer: Optimizer | str | Path | None = None,
    distributed: Distributed = None,
    **keywords: Unpack[SpectrumKeywords],
) -> SpectrumResult:
    r"""Spectrum of the Hessian (or Gauss-Newton matrix) H of the loss: extreme eigenvalues, trace, effective rank, density.

    A block of Rademacher probes v and the gradient starts a Krylov basis Q by block Lanczos, whose products serve everything:
    Ritz pairs at both ends with residuals :math:`\|Hy - \theta y\|`, the Gauss quadrature of the spectral density, and
    :math:`\mathrm{tr} H = \mathrm{tr}(Q^\top H Q) + E[\tilde v^\top H \tilde v]` with
    :math:`\tilde v = (I - QQ^\top) v` of fresh probes, which take over once the eigenvalues are found and vary little because
    the outliers are in Q. tr(H^2), the effective rank, layers and batches share the same products.

    Args:
        objective: the loss; D parameters.
        k: eigenvalues wanted at the upper end, at most D. At the lower end the first is returned with its residual, and further
            ones up to k where they have converged.
        operator: ``"hessian"`` or ``"ggn"`` (positive semidefinite; needs ``criterion=``).
        budget: seconds, or ``"60s"``, ``"5m"``; at the deadline what is known is returned.
        memory: bytes that the call may take, half of them the basis's; default half of what is available for products, a quarter
            for the basis. A full basis is restarted.
        targets: ``"eigenvalues"``: residual relative to the largest \|Ritz value\| (1e-3); ``"trace"``: half-width of its 95 %
            interval relative to it (0.05), ``None`` for eight probes, the fewest that are looked at.
        block: vectors per product, one of them the gradient; default 4, or 3 or 2 of a large model for whose basis there is no
            room otherwise.
        nodes: dimension of the basis, and so of the quadrature of the density, at least.
        seed: of the probes. They depend on nothing else but the parameters' names: at two checkpoints they are the same, so
            that differences are paired.
        warm: an earlier result with ``vectors``, which join the first block.
        optimizer: an optimizer, its state or a file, for :attr:`SpectrumResult.stability`
            (see :func:`fastscape.edge_of_stability`). With it the whole spectrum is that of the function which was trained
            (:meth:`fastscape.Objective.trained`): batch norm takes the statistics of each batch unless others were asked for.
        method: of the products, see :func:`fastscape.hessian`; ``None`` to try them.
        distributed: whether the processes of torch.distributed share the products' batches: ``True``, a process group,
            ``False``, or ``None`` for the default group under torchrun, outside training. ``True`` makes it where there is none.
            All make the same call, rank 0 decides (its budget, progress, Ctrl-C), and all get its result: the same bits for any
            number of processes, unless a budget ends it. ``meta["workers"]`` says who multiplied.
        name, step: of the checkpoint.
        progress: called after every block with a :class:`fastscape.Progress`.
        resume: a folder for a journal of all products. Whatever ends the run, the same call goes on with what the folder has: a
            killed process loses the product that it was at. The result has the bits of a run that nothing disturbed, unless a
            budget ends it. Budget, targets, k, nodes and block may be others then; another model, data, loss, seed or method is
            refused. D numbers on disk for every vector of the basis; a disk that is full ends nothing, and a note says what the
            folder lacks. Of several processes rank 0 writes.
        run: budget, memory, targets, seed, method, name, step, progress, resume, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`SpectrumResult`; trace, layers and rank with intervals over probes, and the data's error of the trace apart.
        NaN or inf products end it with what is known. Ctrl-C gives the partial result, ``meta["stop_reason"] == "interrupted"``.
        The stability comes before the trace is refined, with three tenths of the time at least where it takes an eigenvalue
        of its own (Adam); what time does not allow is left out of it. Its products count (``meta["stability_products"]``).

    Raises:
        ValueError: bad settings, a memory or budget too small (names what is enough), a path that cannot run.
        NondeterministicLossError, AsymmetricProductError: products that are not those of one symmetric matrix.
        SpectrumError: the model raised midway; its ``partial`` holds what is known.
        RankError: a process failed before the first products.

    Cost: ``nodes`` products and two blocks for the trace where five eigenvalues converge in as many, of 1 to 3 gradients each;
    memory of the basis, (nodes + 2 block) D numbers.

    Source: Golub & Underwood (1977); Ghorbani, Krishnan & Xiao (2019); Meyer et al., "Hutch++" (2021).
    """
    work = settled(spectrum, keywords)
    clock = work.clock()
    checked_objective(objective, sharded=True)
    if objective.sharding is not None:
        work = _sharded(objective, objective.sharding, operator, optimizer, work)
    checked_goals(objective, k, operator, nodes, block, work)
    work = dataclasses.replace(work, budget=clock)
    asked = Asked(k, operator, block, nodes, _warm_vectors(objective, warm), optimizer)
    settings = {"operator": operator, "seed": work.seed, "method": work.method, "optimizer": optimizer is not None}
    if objective.sharding is not None:
        return spectrum_of(objective, asked, work, distributed, Evaluations())
    with (
        joined(distributed, objective) as ranks,
        led_by(ranks, lambda: opened(work.resume, "spectrum", [lambda: objective], settings)) as evaluations,
        clock.opening(f"block of {block or BLOCK} products", 60 * len(objective.batches), begun=evaluations.replaying),
    ):
        return spectrum_of(objective, asked, work, distributed if ranks is None else ranks.asked, evaluations)


@dataclass(frozen=True)
class Asked:
    """What is wanted of a spectrum; see :func:`spectrum`."""

    k: int
    operator: str
    block: int | None
    nodes: int
    warm: Tensor | None
    optimizer: Optimizer | str | Path | None


@contextmanager
def led_by(ranks: Group | None, begin: Callable[[], AbstractContextManager[Evaluations]]) -> Iterator[Evaluations]:
    """Evaluations that rank 0 begins and the others do not need; what that raises, all raise."""
    found = Evaluations()
    with ExitStack() as stack:

        def begun() -> None:
            nonlocal found
            found = stack.enter_context(begin())

        if ranks is None:
            begun()
        else:
            ranks.led(begun)
        yield found


def spectrum_of(
    objective: Objective, asked: Asked, work: Run, distributed: Distributed, evaluations: Evaluations
) -> SpectrumResult:
    """The spectrum, with the products that a journal has; see :func:`spectrum`."""
    k, operator, memory, optimizer = asked.k, asked.operator, work.memory, asked.optimizer
    goals = checked_goals(objective, k, operator, asked.nodes, asked.block, work)
    clock = work.clock()
    moves = None if optimizer is None else recursion(objective, read_state(objective, optimizer))
    function = objective if moves is None else objective.trained()
    make = {"hessian": hessian, "ggn": ggn}[operator]
    warm = 0 if asked.warm is None else asked.warm.shape[1]

    def rows_beside(block: int) -> int:
        return 0 if moves is None else least_rows(objective.size, moves, block)

    def fits(block: int) -> bool:
        least = least_capacity(objective.size, k, block + warm) + rows_beside(block)
        return basis_fits(function, memory, least, block + warm)

    block = _block(objective, asked.block, fits, evaluations)
    width, beside = block + warm, rows_beside(block)
    basis = memory
    if memory is not None and objective.sharding is None:
        basis = basis_bytes(function, memory, k, width, beside)
        memory -= basis
    report = reporter(work.progress)

    def alone(of: Objective, path: str | None) -> Curvature:
        return make(of, memory=memory, method=cast("PathName | None", path), distributed=False)

    def rows(matrix: Curvature) -> int:
        wanted = (k, width, goals.nodes, basis, beside)
        found = evaluations.taken(
            "capacity", wanted, lambda: {"rows": _capacity(matrix, k, width, goals, basis, beside)}, always=True
        )
        return int(found["rows"])

    def found(matrix: Curvature) -> SpectrumResult:
        run = SpectralRun(
            function,
            matrix,
            k=k,
            goals=goals,
            block=block,
            seed=work.seed,
            budget=clock,
            capacity=rows(matrix),
            warm=asked.warm,
            name=work.name,
            progress=report,
            evaluations=evaluations,
        )
        stage = None if moves is None else StabilityStage(run, moves, alone, memory=basis)
        return _noted(lambda: _with_stability(run, operator, work.step, stage), evaluations)

    if objective.sharding is not None:
        return found(ShardedHessian(objective, cast("PathName | None", work.method)))
    matrix = make(function, memory=memory, method=cast("PathName | None", work.method), distributed=distributed)
    matrix.recorded(evaluations)
    return found(matrix) if matrix.served is None else led(matrix, lambda: found(matrix))


def basis_bytes(function: Objective, memory: int, k: int, width: int, beside: int) -> int:
    """Bytes of a memory for the basis, whose blocks have ``width`` vectors, with ``beside`` rows of another beside it.

    Raises:
        ValueError: the least basis does not fit, with what is enough.
    """
    return room_for_basis(function, memory, least_capacity(function.size, k, width) + beside, width)


def _block(objective: Objective, asked: int | None, fits: Callable[[int], bool], evaluations: Evaluations) -> int:
    """Vectors per product: fewer for a large model of which a basis for the usual number finds no room."""
    if asked is not None or objective.sharding is not None or not is_large(objective):
        return BLOCK if asked is None else asked
    found = evaluations.taken(
        "block", (), lambda: {"width": next((width for width in range(BLOCK, _LEAST, -1) if fits(width)), _LEAST)}, always=True
    )
    return int(found["width"])


def _noted(work: Callable[[], SpectrumResult], evaluations: Evaluations) -> SpectrumResult:
    """The result, also of a run that failed, with what its journal lacks."""
    try:
        return _lacking(work(), evaluations)
    except SpectrumError as error:
        error.partial = _lacking(cast("SpectrumResult", error.partial), evaluations)
        raise


def _lacking(result: SpectrumResult, evaluations: Evaluations) -> SpectrumResult:
    return dataclasses.replace(result, notes=(*result.notes, *evaluations.notes))


def _with_stability(run: SpectralRun, operator: str, step: int | None, stage: StabilityStage | None) -> SpectrumResult:
    if stage is None:
        return measured(run, operator, step)
    try:
        return stage.added(measured(run, operator, step, between=stage.measure))
    except SpectrumError as error:
        error.partial = stage.added(cast("SpectrumResult", error.partial))
        raise


def _sharded(objective: Objective, sharding: Sharding, operator: str, optimizer: Optimizer | str | Path | None, work: Run) -> Run:
    """Refuse what a sharded model does not allow; the memory is the least that a process has, so that all choose alike."""
    if optimizer is not None or operator == "ggn":
        raise needs_whole("optimizer=" if operator != "ggn" else "operator='ggn'")
    if work.resume is not None:
        raise needs_whole("resume=")
    if work.budget is not None:
        raise ShardedModelError(
            f"budget must be None for a sharded model, whose processes would stop at different products, got {work.budget!r}; "
            "pass nodes= and targets="
        )
    if work.memory is not None:
        return work
    room = available_memory(objective.device) // 4
    return dataclasses.replace(work, memory=int(-sharding.largest(-float(room))))


def measured(
    run: SpectralRun,
    operator: str,
    step: int | None = None,
    extra: Mapping[str, Any] | None = None,
    *,
    between: Callable[[], None] | None = None,
) -> SpectrumResult:
    """Run, and make the result of what was multiplied, whatever ended it.

    Raises:
        SpectrumError: something was raised after the first products; before them it is raised as it is.
    """
    work, known = run.work, run.known

    def kept(error: Exception) -> bool:
        return known.started is not None and not isinstance(error, AsymmetricProductError)

    with work.ends(errors=kept), torch.inference_mode(False):  # a caller's: derivatives are needed
        work.reason = run.run(between)
    if work.reason == "deadline" and known.started is None:
        raise Deadline
    found = spectrum_result(run, work.reason, operator, step, extra or {})
    if work.error is not None:
        why = f"{type(work.error).__name__}: {first_line(work.error)}"
        raise SpectrumError(f"the spectrum of {run.name} failed after {known.count} products: {why}", found) from work.error
    return found


def checked_goals(objective: Objective, k: int, operator: str, nodes: int, block: int | None, work: Run) -> Goals:
    """Checked targets of a spectrum, or an exception that names the argument."""
    one_of("operator", operator, ("hessian", "ggn"))
    integer("seed", work.seed, 0, 2**64)
    check_memory(work.memory)
    if block is not None:
        amount("block", block, _LEAST)
    size, targets = objective.size, work.targets
    if integer("k", k, 1) > size:
        raise ValueError(f"k must be at most D = {size}, got {k}; a matrix has no more eigenvalues than rows")
    if targets is not None and not isinstance(targets, Mapping):
        raise TypeError(
            f"targets must map 'eigenvalues' or 'trace' to a relative error, got {targets!r}; write {{'trace': 0.05}}"
        )
    wanted: dict[str, float | None] = {**TARGETS, **(targets or {})}
    unknown = set(wanted) - set(TARGETS)
    if unknown:
        raise ValueError(f"targets must name 'eigenvalues' or 'trace', got {', '.join(map(repr, sorted(unknown)))}")
    for key, value in wanted.items():
        none = value is None and key == "trace"
        if not none and not (real(value) and 0 < value < 1):
            raise ValueError(f"targets[{key!r}] must lie in (0, 1), got {value!r}")
    nodes = amount("nodes", nodes, 1)
    assert wanted["eigenvalues"] is not None
    return Goals(wanted["eigenvalues"], wanted["trace"], nodes, max(_PRODUCTS * nodes, 400))


def _warm_vectors(objective: Objective, warm: SpectrumResult | None) -> Tensor | None:
    if warm is None:
        return None
    if not isinstance(warm, SpectrumResult):
        raise TypeError(f"warm must be an earlier result of fs.spectrum, got {type(warm).__name__}")
    if warm.vectors is None:
        raise ValueError("warm must hold vectors, got None; they are not saved: pass the result as fs.spectrum returned it")
    vectors: Tensor = warm.vectors
    if vectors.shape[0] != objective.size:
        raise ValueError(f"warm must have the objective's {objective.size} parameters, got {vectors.shape[0]}")
    return vectors if vectors.shape[1] else None


def _capacity(matrix: Curvature, k: int, width: int, goals: Goals, memory: int | None, beside: int) -> int:
    """Rows of the basis: what the nodes and slow convergence want, under the memory cap, with rows of another beside it."""
    size = matrix.shape[0]
    row = size * torch.finfo(matrix.dtype).bits // 8
    room = free_for_basis(matrix.device) if memory is None else memory - BESIDE * width * row
    least = least_capacity(size, k, width) + beside
    if room // row < least:
        where = "memory must be" if memory is not None else "a quarter of the available memory must be"
        raise ValueError(
            f"{where} at least {least * row} bytes for a basis of {least} vectors, got {room}; lower k or block, or raise memory="
        )
    return min(size, room // row - beside, max(3 * goals.nodes, 200) + 2 * width)


def read_state(objective: Objective, optimizer: Optimizer | str | Path) -> OptimizerState:
    """The state of an optimizer, or in its file; see there for the errors."""
    given = read_optimizer(Path(optimizer)) if isinstance(optimizer, (str, Path)) else optimizer
    return OptimizerState.of(given, objective.model)
