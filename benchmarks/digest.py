"""The bits of every public result on fixed models, data and seeds: shows that a change of structure moves no number.

    python benchmarks/digest.py --write before.json     # at one commit
    python benchmarks/digest.py --compare before.json   # at another: exit status 1 where a value differs, which are named

Every public function runs on three small trained networks (an MLP with batch norm, a CNN, a transformer) and, where it takes no
model, on fixed arrays. Results become flat lists of keys and values, floats in hexadecimal and arrays by SHA-256 of their bytes:
a digest per function and one of all. Both runs must be on one machine with one installation, because the last bits depend on the
processor, torch and the libraries below it; the file says on which it was written.

No choice depends on speed or load: one thread, counts in place of budgets, paths and precisions by name where a function takes
them, and a clock on which every reading takes the same time, set to zero before every function. What is time, date, version or
memory is left out, and so are the measured ratios in a reason. Where a function takes no path, the one it chooses on that
clock depends on the order and number of readings: a change there shows in the ``path`` of the result beside its numbers.

Keys are compared by their values: envelopes (``ENVELOPE``) do not count, a value that is found under another key is reported as
moved, and a new one as new; neither is a difference. ``--numbers`` leaves out texts, for a change of words alone. Not covered:
``fs.status`` and the timings of ``fs.bench``, which are of the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import _clock, zoo

TICK = 2.0**-13  # seconds of a reading; a power of two, so that differences are equal at every hour
SEED = 20_260
ENVELOPE = {"result", "content"}  # parts of keys that wrap a result and are none of it
LEFT_OUT = {  # labels of an envelope, and what is of the clock, the date, the machine or the installation
    *("kind", "$kind", "format"),
    *("elapsed", "created", "versions", "threads", "peak", "gradients", "share", "shares", "budget", "memory"),
}
RATIO = re.compile(r"\d[\d.e+-]*\s?(x (faster|slower|as fast)|s\b|ms\b|MiB available)")
SHORT = 8  # numbers of an array that are kept readable

Flat = dict[str, str]


class Clock:
    """Time that passes by reading it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += TICK
        return self.now


# ---------------------------------------------------------------------- values as text


def flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Keys and values of a result: fields of dataclasses, items of mappings and sequences, bits of numbers."""
    if key.rpartition(".")[2] in LEFT_OUT or key.endswith("seconds"):
        return
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        bits = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        yield key, f"{value.dtype}{list(value.shape)} {_short(value.flatten().tolist(), bits)}"
    elif isinstance(value, np.ndarray):
        yield key, f"{value.dtype}{list(value.shape)} {_short(value.ravel().tolist(), value.tobytes())}"
    elif isinstance(value, (bool, int, float, type(None), np.generic)):
        yield key, _number(value)
    elif isinstance(value, (str, Path)):
        yield key, repr(RATIO.sub("...", str(value)))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from flat(getattr(value, field.name), _joined(key, field.name))
    elif isinstance(value, Mapping):
        for name in value:
            yield from flat(value[name], _joined(key, str(name)))
    elif isinstance(value, (list, tuple)):
        if value and all(isinstance(item, (bool, int, float, type(None))) for item in value):
            texts = [_number(item) for item in value]
            yield key, f"list[{len(value)}] {_short(value, ' '.join(texts).encode())}"
        else:
            yield _joined(key, "#"), str(len(value))  # one more would else be a new key alone
            for index, item in enumerate(value):
                yield from flat(item, _joined(key, str(index)))
    elif isinstance(value, (torch.dtype, torch.device)):
        yield key, repr(str(value))


def _joined(key: str, name: str) -> str:
    if name in ENVELOPE:
        return key
    return f"{key}.{name}" if key else name


def _number(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    return value.hex() if isinstance(value, float) else repr(value)


def _short(values: Sequence[Any], bits: bytes) -> str:
    if len(values) <= SHORT:
        return " ".join(_number(item) for item in values)
    return hashlib.sha256(bits).hexdigest()


class Parts(dict[str, Any]):
    """Several results of one function, by names of their own."""


def content(result: Any) -> Flat:
    """What is digested of a result: its fields, and where it has them its JSON data and its table."""
    if isinstance(result, Parts):
        return {f"{name}.{key}": value for name, part in result.items() for key, value in content(part).items()}
    pairs = dict(flat(result, "value"))
    if hasattr(result, "to_dict"):
        pairs |= dict(flat(result.to_dict(), "dict"))
    if hasattr(result, "summary"):
        pairs["summary"] = repr(RATIO.sub("...", result.summary()))
    return pairs


def is_text(value: str) -> bool:
    return value[:1] in "'\""


def digest(pairs: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{key}={pairs[key]}\n" for key in sorted(pairs)).encode()).hexdigest()


# ---------------------------------------------------------------------- networks and data


@dataclasses.dataclass(frozen=True)
class Case:
    """A trained network with its data, its checkpoints and its optimizer's last state."""

    model: nn.Module
    data: list[tuple[Tensor, Tensor]]
    files: list[Path]
    optimizer: Path

    @property
    def objective(self) -> fs.Objective:
        return fs.Objective(deepcopy(self.model), self.data, criterion=F.cross_entropy)

    @property
    def other(self) -> dict[str, Tensor]:
        """A second solution: the first checkpoint."""
        from safetensors.torch import load_file

        return load_file(self.files[0])


def cases(folder: Path) -> dict[str, Case]:
    def mlp() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 10))

    digits = zoo.digits(samples=48, batch_size=24)
    text = zoo.pydoc_text(samples=8, batch_size=4, context=8)
    made: dict[str, tuple[Callable[[], nn.Module], Any]] = {
        "mlp": (mlp, digits),
        "cnn": (partial(zoo.cnn, width=2), digits),
        "transformer": (partial(zoo.tiny_transformer, width=8, layers=1, heads=2, context=8), text),
    }
    found = {}
    for name, (make, data) in made.items():
        torch.manual_seed(SEED)
        model = make()
        files = zoo.train(model, data, folder / name, steps=24, checkpoints=3, batch_size=16, seed=SEED)
        optimizer = next(iter((folder / name).glob("step24.optimizer*")))
        found[name] = Case(model.eval(), data, files, optimizer)
    return found


# ---------------------------------------------------------------------- what is run

PRODUCTS = ("graph", "graph, batched", "forward", "replay", "reverse", "gradient difference", "channels-last")
RADII = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
SETTINGS = fs.AnalysisSettings(q=(-1.0, 0.0, 0.5, 1.0, 2.0, 3.0), bootstrap=40, permutations=39, seed=SEED)
Job = Callable[[], Any]


def on_a_network(case: Case) -> Iterator[tuple[str, Job]]:
    yield from of_the_function(case)
    yield from of_responses(case)
    yield from of_curvature(case)
    yield from of_measures(case)
    yield from of_pictures(case)
    yield from of_training(case)
    yield from of_everything(case)


def of_the_function(case: Case) -> Iterator[tuple[str, Job]]:
    def loss() -> Any:
        of = case.objective
        told = {"loss": of.loss(), "norm": of.norm, "size": of.size, "samples": of.samples, "remarks": of.remarks}
        marks = {"data": of.data_fingerprint(), "weights": of.weight_fingerprint(), "names": of.names}
        return {**told, **marks, "accuracy": of.accuracy(), "gradient": of.gradient(), "statistics": of.statistics()}

    def directions(**settings: Any) -> Any:
        found = fs.Directions(case.objective, count=3, seed=SEED, **settings)
        return {"tensors": [found.tensors(index) for index in range(3)], "lengths": [found.length(index) for index in range(3)]}

    yield "objective", loss
    yield "objective.trained", lambda: case.objective.trained().gradient()
    for settings in ({}, {"distribution": "rademacher"}, {"normalize": "filter"}, {"normalize": "module", "scale": "unit"}):
        yield f"directions {settings}", partial(directions, **settings)


def of_responses(case: Case) -> Iterator[tuple[str, Job]]:
    def along(function: Callable[..., Any], *more: Any, **settings: Any) -> Any:
        of = case.objective
        return function(of, fs.Directions(of, count=4, seed=SEED), *more, **settings)

    for precision, path in (("float64", "loop"), ("float64", "vmap"), ("float32", "loop")):
        yield f"losses {precision} {path}", partial(along, fs.losses, RADII, precision=precision, method=path)
        yield f"responses {precision} {path}", partial(along, fs.responses, RADII, precision=precision, method=path)
    for precision, path in (("difference", "graph"), ("difference", "dispatch"), ("difference-bf16", "graph")):
        yield f"responses {precision} {path}", partial(along, fs.responses, RADII, precision=precision, method=path)
    yield "responses", partial(along, fs.responses, RADII)
    yield "operators", lambda: fs.operators(case.objective, method="graph")
    yield "operators dispatch", lambda: fs.operators(case.objective, method="dispatch")
    for path in ("graph", "dispatch", "forwards"):
        yield f"quadratic_forms {path}", partial(along, fs.quadratic_forms, method=path)
    yield "quadratic_forms float64", partial(along, fs.quadratic_forms, method="graph", lanes=torch.float64)
    yield "mean_quadratic_form", partial(along, fs.mean_quadratic_form, groups=2)


def of_curvature(case: Case) -> Iterator[tuple[str, Job]]:
    def products(make: Callable[..., Any], path: str) -> Any:
        of = case.objective
        matrix, vectors = make(of, method=path), torch.randn(of.size, 3, generator=torch.Generator().manual_seed(SEED))
        found, forms = matrix.forms(vectors)
        told = {"one": matrix.matvec(vectors[:, 0]), "many": found, "forms": forms, "products": matrix.products}
        return {**told, "layers": [str(part) for part in matrix.layers.items()], "notes": matrix.notes}

    for path in PRODUCTS:
        yield f"hessian {path}", partial(products, fs.hessian, path)
    for path in PRODUCTS[:4]:
        yield f"ggn {path}", partial(products, fs.ggn, path)
    common: dict[str, Any] = {"nodes": 16, "seed": SEED, "targets": {"eigenvalues": 1e-2, "trace": None}}
    yield "spectrum", lambda: fs.spectrum(case.objective, 2, method="graph", **common)
    yield "spectrum forward", lambda: fs.spectrum(case.objective, 1, method="forward", block=3, **common)
    yield "spectrum ggn", lambda: fs.spectrum(case.objective, 2, operator="ggn", method="graph", **common)
    yield "spectrum stability", lambda: fs.spectrum(case.objective, 1, optimizer=case.optimizer, method="graph", **common)
    yield "spectra", lambda: fs.spectra(case.objective, case.files[1:], 1, method="graph", **common)
    yield "edge_of_stability", lambda: fs.edge_of_stability(case.objective, case.optimizer, max_products=30, method="graph")
    yield "edge_of_stability sgd", lambda: sgd_edge(case)


def sgd_edge(case: Case) -> Any:
    of = case.objective
    moves = torch.optim.SGD(of.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    return fs.edge_of_stability(of, moves, operator="ggn", max_products=30, method="graph", seed=SEED)


def of_measures(case: Case) -> Iterator[tuple[str, Job]]:
    def measured(path: str | None, **settings: Any) -> Any:
        probe = fs.ProbeSettings(count=4, banks=2, seed=SEED, **settings)
        first = fs.multifractal(case.objective, probe, SETTINGS, method=path)
        return Parts(first=first, again=first.reanalyse(variant="odd"))

    yield "multifractal difference", lambda: measured("graph", precision="difference")
    yield "multifractal float64", lambda: measured("loop", precision="float64", scale="unit", normalize="filter")
    yield "multifractal rotate", lambda: measured("loop", precision="float64", radii=RADII, bank_batches="rotate")
    probe = fs.ProbeSettings(count=3, banks=2, seed=SEED, precision="difference", radii=RADII)
    yield "trajectory", lambda: fs.trajectory(case.objective, case.files, probe, SETTINGS, method="graph")


def of_pictures(case: Case) -> Iterator[tuple[str, Job]]:
    def line(**settings: Any) -> Any:
        return fs.slice1d(
            case.objective, precision="float64", **{"points": 7, "count": 2, "seed": SEED, "method": "loop", **settings}
        )

    def plane(**settings: Any) -> Any:
        return fs.slice2d(
            case.objective, precision="float64", **{"points": 5, "radius": 0.5, "seed": SEED, "method": "loop", **settings}
        )

    def axes(make: Callable[[fs.Objective], fs.Axes]) -> Any:
        of = case.objective
        return Parts(axes=make(of), slice=fs.slice2d(of, make(of), points=3, precision="float64", method="loop"))

    yield "slice1d", line
    yield "slice1d vmap", partial(line, method="vmap", normalize="tensor", scale="unit")
    yield "slice1d float32", lambda: fs.slice1d(case.objective, points=5, count=1, precision="float32", method="loop", seed=SEED)
    yield "slice1d trajectory", partial(line, trajectory=case.files)
    yield "slice2d", plane
    yield "slice2d vmap", partial(plane, method="vmap", orthogonal=False)
    yield "slice2d trajectory", partial(plane, trajectory=case.files, bn="recalibrate", radius=None)
    states = [torch_state(path) for path in case.files]
    yield "axes pca", lambda: axes(lambda of: fs.Axes.pca(of, states))
    yield "axes gradient", lambda: axes(lambda of: fs.Axes.gradient(of) + fs.Axes.random(of, 1, seed=SEED))
    for bn in ("recalibrate", "running", "batch"):
        yield f"barrier {bn}", lambda bn=bn: barrier(case, bn=bn)
    yield "barrier matched", lambda: barrier(case, match=True)
    yield "connect", lambda: fs.connect(case.objective, b=case.other, steps=4, precision="float64", **BARRIER)
    yield "connect matched", lambda: fs.connect(case.objective, b=case.other, steps=2, match=True, precision="float64", **BARRIER)
    named = {path.stem: path for path in case.files}
    yield "barriers", lambda: fs.barriers(case.objective, named, match=True, precision="float64", **BARRIER)


BARRIER: dict[str, Any] = {"points": 9, "start": 5, "seed": SEED}


def barrier(case: Case, **settings: Any) -> Any:
    return fs.barrier(case.objective, b=case.other, precision="float64", **BARRIER, **settings)


def torch_state(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def of_training(case: Case) -> Iterator[tuple[str, Job]]:
    few: dict[str, Any] = {"restarts": 2, "steps": 3, "samples": 4, "products": 6, "seed": SEED, "precision": "float64"}
    for variant in ("normalized", "sam", "asam"):
        yield f"sharpness {variant}", lambda variant=variant: fs.sharpness(case.objective, 0.05, variant=variant, **few)
    yield "sharpness m", lambda: fs.sharpness(case.objective, 0.05, variant="sam", m=4, **few)
    moves = torch.optim.Adam(case.objective.model.parameters(), lr=0.01)
    yield "critical sharpness", lambda: fs.critical_sharpness(case.objective, precision="float64")
    yield "critical sharpness of Adam", lambda: fs.critical_sharpness(case.objective, optimizer=moves, curvature=False)
    for estimator in ("xdiag", "hutchinson", "exact"):
        yield f"diagonal {estimator}", lambda estimator=estimator: fs.diagonal(case.objective, estimator=estimator, seed=SEED)
    noise: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.1, "seed": SEED}
    yield "temperature", lambda: fs.temperature(case.objective, method="per-sample", products=4, momentum=0.9, **noise)
    yield "temperature two-batch", lambda: fs.temperature(case.objective, method="two-batch", products=0, **noise)
    yield "temperature population", lambda: fs.temperature(case.objective, products=0, population=1000, **noise)
    yield "difficulty", lambda: trained(case, None)[0]
    yield "difficulty full", lambda: trained(case, None, gradient="full", warm=False, operator="ggn")[0]
    yield "tracker", lambda: trained(case, ("loss", "gradient", "spectrum", "slice", own))[1]
    yield "tracker multifractal", lambda: trained(case, ("loss", "multifractal"))[1]


def own(objective: fs.Objective, step: int) -> dict[str, float]:
    return {"mine": objective.loss() * step}


def trained(case: Case, what: Sequence[Any] | None, **settings: Any) -> tuple[Any, Any]:
    """Difficulty and track of six steps of training."""
    torch.manual_seed(SEED)
    of = case.objective
    model = of.model.train()
    moves = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    difficulty = fs.Difficulty(of, every=2, method="graph", max_products=20, seed=SEED, **settings)
    extra = {"share": 1e6, "when": fs.Schedule(steps=(0, 3, 6)), "seed": SEED, "k": 1}
    tracker = None if what is None else fs.Tracker(of, what=what, difficulty=difficulty, **extra)
    for step in range(7):
        if step:
            inputs, targets = case.data[step % 2]
            moves.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            moves.step()
        if tracker is None:
            difficulty.step(step, optimizer=moves)
        else:
            tracker.step(step, optimizer=moves)
    return (difficulty.finish(), None) if tracker is None else (None, tracker.finish())


def of_everything(case: Case) -> Iterator[tuple[str, Job]]:
    options: dict[str, Any] = {
        "spectrum": {"method": "graph", "nodes": 12, "targets": {"eigenvalues": 0.1, "trace": None}},
        "slice": {"points": 5, "count": 2, "precision": "float64", "method": "loop"},
        "sharpness": {"restarts": 1, "steps": 2, "samples": 3, "products": 4, "precision": "float64"},
        "temperature": {"products": 0},
        "barrier": {"points": 5, "start": 5, "precision": "float64"},
        "multifractal": {
            "probe": fs.ProbeSettings(count=3, banks=2, precision="difference", radii=RADII, seed=SEED),
            "analysis": SETTINGS,
            "method": "graph",
        },
    }
    training = {"batch_size": 4, "learning_rate": 0.1, "momentum": 0.9}

    def signed(other: Any = None, options: Any = options) -> Any:
        left = {kind: given for kind, given in options.items() if kind != "multifractal"}
        return fs.signature(case.objective, other=other, k=1, seed=SEED, options=left, **training)

    def compared() -> Any:
        late = signed(case.other)
        early = fs.signature(case.objective.at(case.other), k=1, seed=SEED, what="spectrum", options=options)
        return fs.compare([early, late])

    yield "probe", lambda: fs.probe(case.objective, other=case.other, seed=SEED, options=options, **training)
    yield "signature", lambda: signed(case.other)
    yield "signature warnings", lambda: list(signed().warnings())
    yield "compare", compared
    yield "saved", lambda: saved(case)
    yield "doctor", lambda: fs.doctor(case.objective).model
    yield "bench", lambda: [(unit.name, unit.loss, unit.deviation, unit.reason) for unit in timed(case).units]


def timed(case: Case) -> Any:
    return fs.bench(case.objective, budget=None, count=2, repeats=2, seed=SEED)


def saved(case: Case) -> Any:
    """Results as they are after a file."""
    found = Parts()
    with tempfile.TemporaryDirectory() as folder:
        for name, result in (
            ("slice", fs.slice1d(case.objective, points=5, count=1, precision="float64", method="loop", seed=SEED)),
            ("barrier", barrier(case)),
            ("spectrum", fs.spectrum(case.objective, 1, nodes=8, method="graph", seed=SEED, targets={"trace": None})),
        ):
            found[name] = fs.load(result.save(Path(folder) / name))
    return found


def without_a_model() -> Iterator[tuple[str, Job]]:
    def analysed(**settings: Any) -> Any:
        generator = np.random.default_rng(SEED)
        eps = np.logspace(-4, -1, 8)
        banks = [eps[:, None] ** generator.uniform(1.5, 2.5, 12) * generator.lognormal(size=12) for _ in range(2)]
        return fs.analyse(banks, eps, settings=dataclasses.replace(SETTINGS, **settings))

    def associated() -> Any:
        generator = np.random.default_rng(SEED)
        early = generator.normal(size=24)
        late = early + generator.normal(size=24)
        whole = fs.association(early, late, replicates=200, seed=SEED)
        return {"whole": whole, "groups": fs.association(early, late, [index % 3 for index in range(24)], replicates=200)}

    yield "analyse", analysed
    yield "analyse settings", partial(analysed, gamma=0.5, measure_floor=1e-10, authors_trust=True, windows=((1, 5), (2, 8)))
    yield "association", associated
    yield "preset", lambda: fs.preset("torok2026")
    yield "schedules", lambda: [fs.log_spaced(1000, 9), fs.fractions(1000), fs.Schedule(every=7, total=100)]
    yield "rules", lambda: [(rule.name, rule.conditions, rule.advice, rule.source) for rule in fs.DEFAULT_RULES]


# ---------------------------------------------------------------------- running and comparing


def outcome(job: Job, folder: str) -> Flat:
    """Content of a result, or the exception in its place: what a model refuses is a result too."""
    _clock.read.now = 0.0  # type: ignore[attr-defined]
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - what a probe must leave alone
    try:
        found = content(job())
    except Exception as error:  # compared as the rest
        found = {"error": repr(RATIO.sub("...", f"{type(error).__name__}: {error}"))}
    return {key: value.replace(folder, "") for key, value in found.items()}


def run(only: str = "") -> dict[str, Flat]:
    """Content of every result, by the name of what was run."""
    torch.set_num_threads(1)
    _clock.read, _clock.processor = Clock(), lambda: 1.0
    found: dict[str, Flat] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jobs = [("", *job) for job in without_a_model()]
        for name, case in cases(Path(folder)).items():
            jobs += [(f"{name}: ", *job) for job in on_a_network(case)]
        for prefix, name, job in jobs:
            if only in prefix + name:
                found[prefix + name] = outcome(job, folder)
                print(f"{digest(found[prefix + name])[:16]}  {len(found[prefix + name]):5d}  {prefix + name}", flush=True)
    return found


def machine() -> dict[str, str]:
    """What the last bits depend on."""
    return {
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {os.environ.get('FASTSCAPE_ISA', '')}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def differences(before: Flat, after: Flat, *, numbers: bool) -> tuple[list[str], list[str], list[str]]:
    """Keys whose values differ or are gone, that have moved, and that are new."""
    if numbers:
        before, after = ({key: value for key, value in pairs.items() if not is_text(value)} for pairs in (before, after))
    changed = [key for key in before if key in after and before[key] != after[key]]
    gone, new = [key for key in before if key not in after], [key for key in after if key not in before]
    spare = Counter(_named(key, after) for key in new)
    moved = []
    for key in gone:
        if spare[_named(key, before)]:
            spare[_named(key, before)] -= 1
            moved.append(key)
    return changed + [key for key in gone if key not in moved], moved, new


def _named(key: str, pairs: Flat) -> tuple[str, str]:
    return key.rpartition(".")[2], pairs[key]


def compare(before: Mapping[str, Flat], after: Mapping[str, Flat], *, numbers: bool, shown: int = 5) -> bool:
    """Print what differs; whether nothing does."""
    same = True
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after or name not in before:
            print(f"{name}: {'not run now' if name in before else 'new'}")
            same &= name not in before
            continue
        wrong, moved, new = differences(before[name], after[name], numbers=numbers)
        same &= not wrong
        if wrong:
            print(f"{name}: {len(wrong)} of {len(before[name])} values differ")
            for key in wrong[:shown]:
                print(f"    {key}: {before[name][key][:160]} -> {after[name].get(key, 'gone')[:160]}")
        if moved or new:
            print(f"{name}: {len(moved)} values moved to other keys, {len(new) - len(moved)} are new")
    return same


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the values as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="exit 1 where values differ from those kept")
    parser.add_argument("--numbers", action="store_true", help="compare numbers alone, no texts")
    parser.add_argument("--only", default="", metavar="TEXT", help="run what has this text in its name")
    options = parser.parse_args(arguments)
    found = run(options.only)
    print(f"{digest({name: digest(pairs) for name, pairs in found.items()})}  total of {len(found)}, {Path(fs.__file__).parent}")
    if options.write:
        options.write.write_text(json.dumps({"machine": machine(), "found": found}, indent=0, sort_keys=True), encoding="utf-8")
    if not options.compare:
        return 0
    kept = json.loads(options.compare.read_text(encoding="utf-8"))
    if kept["machine"] != machine():
        print(f"written on another machine or installation: {kept['machine']}, now {machine()}")
    before = {name: pairs for name, pairs in kept["found"].items() if options.only in name}
    same = compare(before, found, numbers=options.numbers)
    print("no value differs" if same else "values differ")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
