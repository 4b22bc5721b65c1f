"""The multifractal probe by several processes: cases that each of them calls, and what one process alone calls too."""

import functools
import hashlib
import os
import random
import signal
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F
from worker import group, own_group

import fastscape as fs
from fastscape import _clock, zoo
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.probes.multifractal.units import UnitEvaluator
from fastscape.probes.multifractal.visits import Visits
from fastscape.runs import agreement, torch_workers
from fastscape.runs.torch_workers import TorchWorkers

RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
PATHS = {"loop": "float64", "vmap": "float64", "graph": "difference"}
MODELS = ("mlp", "cnn", "transformer")
ANALYSIS = fs.AnalysisSettings(bootstrap=20, permutations=19)  # quick: what is compared are the responses
PROBE = {"count": 6, "banks": 2, "radii": (1e-4, 1e-3, 1e-2, 1e-1)}
evaluate, drawn, evaluated = UnitEvaluator.__call__, TorchWorkers._draw, torch_workers._Server._unit
PATCHED = (  # by cases, for the time of one
    (UnitEvaluator, "__call__"),
    (TorchWorkers, "_draw"),
    (torch_workers._Server, "_unit"),
    (DifferenceEvaluator, "responses"),
    (Visits, "_open"),
    (agreement, "versions"),
    (_clock, "read"),
    (os, "write"),
)


def objective(name="mlp", samples=48, batch=None, criterion=F.cross_entropy):
    torch.manual_seed(0)
    if name == "transformer":
        model = zoo.tiny_transformer(width=16, layers=1, heads=2, context=8)
        return fs.Objective(model, zoo.pydoc_text(samples=4, batch_size=4, context=8), criterion=criterion)
    model = getattr(zoo, name)()
    return fs.Objective(model, zoo.digits(samples=samples, batch_size=batch or samples), criterion=criterion)


def digest(result):
    """Of all responses; how the noise is measured depends on the time that a forward takes."""
    points = getattr(result, "points", [result])
    arrays = [array for point in points for array in (point.measured.even, point.measured.odd)]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def probed(path="graph", name="mlp", distributed=SIZE > 1, **options):
    settings = fs.ProbeSettings(precision=PATHS[path], **(PROBE | options.pop("probe", {})))
    of = options.pop("of", None) or objective(name)
    return fs.multifractal(of, settings, ANALYSIS, method=path, distributed=distributed, **options)


def case(function):
    """Mark a case: it makes its groups itself, and what it patches is put back."""

    @own_group
    @functools.wraps(function)
    def run(*arguments):
        before = [getattr(owner, name) for owner, name in PATCHED]
        try:
            return function(*arguments)
        finally:
            for (owner, name), value in zip(PATCHED, before, strict=True):
                setattr(owner, name, value)

    return run


def failed(work):
    """Type and message of what ``work`` raises."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


class Store:
    """A counter of all processes, for the order of what a case wants to see."""

    def __init__(self, name):
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.PrefixStore(f"test/{name}", dist.TCPStore(host, port, is_master=False))

    def add(self, key, by=1):
        return self._store.add(key, by)

    def until(self, key, count):
        while self._store.add(key, 0) < count:
            _clock.pause(0.005)


def fairly(name, units=1):
    """Make every rank do a unit: rank 0 begins once another has done so many, and that one goes on once rank 0 has begun."""
    if SIZE == 1:
        return
    store = Store(name)

    def draw(self, current):
        store.until("others", units)
        index = drawn(self, current)
        store.add("rank 0")
        return index

    def unit(self, index, unit):
        evaluated(self, index, unit)
        if store.add("others") >= units:
            store.until("rank 0", 1)

    if RANK:
        torch_workers._Server._unit = unit
    else:
        TorchWorkers._draw = draw


def shared_out(result):
    """Whether others than rank 0 did something."""
    workers = result.meta.get("workers")
    return workers is not None and sum(workers["units"][1:]) > 0 and len(workers["units"]) == SIZE


# ---------------------------------------------------------------------- cases


@case
def same():
    """Numbers of every path and model, one call after another."""
    found = {}
    for name in MODELS:
        for path in PATHS:
            fairly(f"{name} {path}")
            result = probed(path, name)
            found[f"{name} {path}"] = digest(result)
            assert shared_out(result) or SIZE == 1
        assert result.meta["evaluations"] > 2 * 4 * 12 or path == "graph"
    fairly("planned")
    again = probed(plan=result, name=name)
    found["planned"] = digest(again)
    assert again.measured.noise.tobytes() == result.measured.noise.tobytes()
    fairly("responses")
    first = fs.responses(
        of := objective("cnn"), fs.Directions(of, count=10), [1e-3, 1e-2], precision="difference", distributed=SIZE > 1
    )
    alone = fs.responses(of, fs.Directions(of, count=10), [1e-3, 1e-2], plan=first.plan, distributed=False)
    assert (first.even.tobytes(), first.odd.tobytes()) == (alone.even.tobytes(), alone.odd.tobytes())
    assert SIZE == 1 or (first.plan.ways[0].unit == 4 and sum(first.workers["workers"]["units"][1:]) > 0)
    fairly("rotate")
    found["rotate"] = digest(probed(of=objective(samples=24, batch=12), probe={"bank_batches": "rotate", "banks": 4}))
    return found


@case
def along(folder):
    """A trajectory."""
    files = [Path(folder) / f"step{step}.pt" for step in (1, 2)]
    fairly("along")
    result = fs.trajectory(
        objective(), files, fs.ProbeSettings(**PROBE, precision="difference"), method="graph", distributed=SIZE > 1
    )
    return {"digest": digest(result), "shared": shared_out(result)}


@case
def refused():
    """What all ranks raise where rank 1 has something else."""
    first = objective()
    other = objective()
    with torch.no_grad():
        next(other.model.parameters())[0, 0] += 1e-7
    smooth = objective(criterion=torch.nn.CrossEntropyLoss(label_smoothing=0.1))
    found = {
        "weights": failed(lambda: probed(of=(first, other)[RANK])),
        "data": failed(lambda: probed(of=(first, objective(samples=47))[RANK])),
        "loss": failed(lambda: probed(of=(first, smooth)[RANK])),
        "settings": failed(lambda: probed(probe={"seed": RANK})),
    }
    versions = agreement.versions
    agreement.versions = lambda: versions() | ({"torch": "1.0"} if RANK else {})
    found["version"] = failed(probed)
    agreement.versions = lambda: versions() | ({"instructions": "others"} if RANK else {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found["instructions"] = probed().meta["bitwise"]
    agreement.versions = versions
    found["warned"] = [str(warning.message) for warning in caught]
    found["after"] = digest(probed())
    return found


@case
def failing():
    """What all ranks raise where one fails."""
    found, opened = {}, Visits._open

    def planless(*arguments):
        raise ArithmeticError("no plan")

    if RANK == 0:
        Visits._open = planless
    found["planning"] = failed(probed)
    Visits._open = opened
    store = Store("failing")

    def second(self, unit):
        if RANK == 0:
            store.until("others", 1)
        elif store.add("others") > 1:
            raise ArithmeticError("no loss")
        return evaluate(self, unit)

    UnitEvaluator.__call__ = second
    try:
        probed(probe={"count": 40})
    except fs.ProbeError as error:
        found["unit"] = str(error)
        found["partial"] = digest(error.partial)
        found["reason"] = error.partial.points[0].meta["stop_reason"]
    UnitEvaluator.__call__ = evaluate
    return found


@case
def narrow():
    """Rank 1 has memory for one direction at a time, and later for none."""
    responses = DifferenceEvaluator.responses
    fairly("narrow")

    def short(self, directions, indices, radii, **options):
        if RANK == 1 and len(indices) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return responses(self, directions, indices, radii, **options)

    DifferenceEvaluator.responses = short
    halved = probed()

    def none(self, directions, indices, radii, **options):
        if RANK == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return responses(self, directions, indices, radii, **options)

    def waiting(self, unit):
        store.add(str(RANK))
        store.until("1", 1)
        return evaluate(self, unit)

    store = Store("none")
    UnitEvaluator.__call__, DifferenceEvaluator.responses = waiting, none
    left = probed()
    return {
        "oom": halved.meta["workers"]["oom"],
        "bitwise": halved.meta.get("bitwise"),
        "even": halved.measured.even.tolist(),
        "left": digest(left),
        "units": left.meta["workers"]["units"],
    }


@case
def deadline():
    """A budget on a clock that goes on with every look, and progress."""
    seen = []

    def read():
        read.now += 0.01
        return read.now

    read.now = 0.0
    _clock.read = read
    result = probed(probe={"count": None}, budget=30, progress=seen.append)
    return {"reason": result.meta["stop_reason"], "digest": digest(result), "progress": len(seen), "taken": read.now}


@case
def interrupted():
    """The launcher is ended while units are evaluated."""
    store = Store("interrupted")

    def ending(self, unit):
        if store.add("units") > 3 and RANK == 0:
            os.kill(os.getppid(), signal.SIGTERM)
            signal.pause()
        return evaluate(self, unit)

    UnitEvaluator.__call__ = ending
    result = probed(probe={"count": 4000})
    return {"reason": result.meta["stop_reason"], "digest": digest(result), "directions": result.directions}


def mortal(moment, share):
    """Make this process die in its so-many-th write to a journal's units, after a share of its bytes."""
    write, begun = os.write, []

    def dying(descriptor, content):
        begun.extend([descriptor] * ("/units." in str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        if len(begun) == moment:
            write(descriptor, content[: int(share * len(content))])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, content)

    os.write = dying


def copied(work):
    """Text that a copy of this process makes by some work, and its exit status; this process begins no autograd."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        return pipe.read(), os.waitpid(child, 0)[1]


@case
def kills(folder, seed):
    """Every model and path, killed at a random write of its journal, and resumed."""
    draw, found = random.Random(seed), {}
    for name in MODELS:
        for path in PATHS:
            journal = Path(folder) / f"{name} {path}"

            def run(*death, name=name, path=path, journal=journal):
                if death:
                    mortal(*death)
                return digest(probed(path, name, False, resume=journal))

            moment = draw.randint(1, 2), draw.random()
            assert copied(lambda run=run, moment=moment: run(*moment)) == ("", signal.SIGKILL)
            found[f"{name} {path}"], status = copied(run)
            assert status == 0
    return found


@case
def killed(folder, seed):
    """A rank dies at a random write of its journal in two attempts of torchrun; the third is repeated by the journal."""
    journal, attempt = Path(folder) / "journal", os.environ["TORCHELASTIC_RESTART_COUNT"]
    draw = random.Random(f"{seed} {attempt}")
    fairly(f"killed {attempt}", 2 if attempt == "0" else 1)  # one unit at least is kept
    if attempt in "01" and draw.randrange(SIZE) == RANK:
        mortal(3 if RANK and attempt == "0" else draw.randint(1, 2), draw.random())
    result = probed(probe={"count": 40}, resume=journal)
    again = probed(probe={"count": 40}, resume=journal)
    return {
        "restarts": attempt,
        "digest": digest(result),
        "again": digest(again),
        "evaluated": sum(result.meta["workers"]["units"]),
        "evaluated again": sum(again.meta["workers"]["units"]),
        "writers": len({path.name.split(".")[2] for path in journal.glob("units.*.jsonl")}),
    }


@case
def groups():
    """Process groups of the user, and a training in them."""
    with group():
        found = {"default": probed(distributed=None).meta["workers"]["engine"]}
        found["world"] = probed(distributed=dist.group.WORLD).meta["workers"]["size"]
        first = dist.new_group([0])
        found["one"] = failed(lambda: probed(distributed=first))
        model = torch.nn.parallel.DistributedDataParallel(objective().model)
        trained = fs.Objective(model.module, zoo.digits(samples=48, batch_size=48), criterion=F.cross_entropy)
        if RANK == 0:  # alone, as people do
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found["alone"] = digest(probed(of=trained, distributed=None))
            found["warned"] = [str(warning.message) for warning in caught]
            probed(of=trained, distributed=False)
        found["asked for"] = probed(of=trained, distributed=True).meta["workers"]["size"]
        del model
    return found
