"""Products of curvature matrices by several processes."""

import hashlib
import itertools
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from worker import group, outcome, own_group

import fastscape as fs
from fastscape.curvature.products import Products
from fastscape.curvature.served import ServedProducts

SIZES = (40, 24, 33, 8, 17)  # of batches


def data(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 6, generator=draw, dtype=dtype), torch.randint(0, 3, (n,), generator=draw))
        for n in SIZES
    ]  # fmt: skip


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def objective(dtype=torch.float32, **options):
    return fs.Objective(network().to(dtype), data(dtype), **({"criterion": F.cross_entropy} | options))


def digest(*parts):
    """SHA-256 of arrays, tensors and numbers."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(np.asarray(part.contiguous() if isinstance(part, torch.Tensor) else part).tobytes())
    return whole.hexdigest()


def of_spectrum(found):
    traces = [(each.value, *each.interval) for each in (found.trace, found.trace_square, *found.layer_traces.values())]
    return digest(
        found.eigenvalues,
        found.residuals,
        found.smallest,
        traces,
        found.density.nodes,
        found.density.weights,
        found.gradient_curvature,
        found.vectors,
    )


def off(found, expected):
    """Largest difference relative to the largest number."""
    found, expected = (np.asarray(value, dtype=np.float64) for value in (found, expected))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def process():
    """What a call must leave as it was."""
    return {
        "random": digest(torch.get_rng_state(), np.random.get_state()[1]) + repr(hash(random.getstate())),
        "threads": torch.get_num_threads(),
        "signals": [repr(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "groups": repr(sorted(map(repr, dist.distributed_c10d._world.pg_map.values()))),
        "grad": (torch.is_grad_enabled(), torch.get_default_dtype()),
    }


def state(model):
    return [(name, digest(tensor.detach()), tensor._version, tensor.grad is None) for name, tensor in model.state_dict().items()]


def products():
    """Digests that must be those of every rank and number of ranks, and distances to a process alone."""
    found, apart = {}, {}
    for dtype, limit in ((torch.float32, "float32"), (torch.float64, "float64")):
        loss = objective(dtype)
        before = process(), state(loss.model)
        vectors = torch.randn(loss.size, 5, generator=torch.Generator().manual_seed(2), dtype=dtype)
        for make in (fs.hessian, fs.ggn):
            name = f"{make.__name__} {limit}"
            matrix, alone = make(loss, distributed=True), make(loss, distributed=False, method="graph")
            images, forms = matrix.forms(vectors)
            found[name] = digest(matrix @ vectors, images, forms, matrix.quadratic_forms(vectors), matrix @ vectors[:, 0])
            apart[name] = max(
                off(images, alone @ vectors),
                off(forms, alone.forms(vectors)[1]),
                off(matrix.quadratic_forms(vectors), alone.quadratic_forms(vectors)),
            )
            matrix.release()
            found[f"{name} after release"] = digest(matrix @ vectors)
        result = fs.spectrum(loss, 3, nodes=20, distributed=True)
        plain = fs.spectrum(loss, 3, nodes=20, distributed=False, method="graph")
        found[f"spectrum {limit}"] = of_spectrum(result)
        apart[f"spectrum {limit}"] = off(result.eigenvalues, plain.eigenvalues)
        assert result.meta["workers"]["size"] == dist.get_world_size()
        assert sorted(itertools.chain(*result.meta["workers"]["batches"])) == list(range(len(SIZES)))
        assert "workers" not in plain.meta
        assert (process(), state(loss.model)) == before
    one = fs.hessian(objective().on(2), distributed=True)  # the other ranks have none
    assert one.prepare(2) is one.prepare(2, thorough=True)
    found["one batch"] = digest(one @ torch.ones(one.shape[0], 2), one.forms(torch.ones(one.shape[0], 2))[1])
    cut = fs.hessian(objective(), distributed=True)
    cut @ torch.ones(cut.shape[0])
    if dist.get_rank() == 0:
        assert cut.served.space.halve()
    cut @ torch.ones(cut.shape[0])  # what was chosen stands
    found["cut"] = digest(cut @ torch.ones(cut.shape[0], 3), cut @ torch.ones(cut.shape[0], 2))
    batched = fs.hessian(objective(), distributed=True, method="graph, batched")
    found["batched"] = digest(batched @ torch.ones(batched.shape[0], 11))
    loss = objective()
    differences = fs.hessian(loss, distributed=True, method="gradient difference")
    found["differences"] = digest(differences @ torch.randn(loss.size, 2, generator=torch.Generator().manual_seed(3)))
    found["ddp"] = of_spectrum(
        fs.spectrum(fs.Objective(nn.parallel.DistributedDataParallel(network()), data(), criterion=F.cross_entropy), 3, nodes=20,
                    distributed=True)
    )  # fmt: skip
    directions = fs.Directions(loss, 8, normalize="none", scale="unit")
    mean = fs.mean_quadratic_form(loss, directions, groups=4, distributed=True)
    assert mean == fs.mean_quadratic_form(loss, directions, groups=4, distributed=False)
    return {"found": found, "apart": apart}


def resumed():
    """A spectrum that failed on rank 0 goes on from rank 0's journal; another is refused on all."""
    loss, folder, blocks = objective(), Path(os.environ["FOUND"]), []
    real = ServedProducts._together

    def together(self, rows, **settings):
        blocks.append(len(rows))
        return real(self, rows, **settings)

    def spectrum(name, **settings):
        blocks.clear()
        return of_spectrum(fs.spectrum(loss, 3, nodes=20, distributed=True, resume=folder / name, **settings)), len(blocks)

    def fails(state):
        if state.done > 9:
            raise ArithmeticError("stopped")

    ServedProducts._together = together
    try:
        whole = spectrum("whole")
        failed = outcome(lambda: spectrum("run", progress=fails))
        done = len(blocks)
        again = spectrum("run")
        other = outcome(lambda: spectrum("run", seed=5))
        return {"whole": whole, "failed": failed[0], "done": done, "again": again, "other": other, "complete": spectrum("run")}
    finally:
        ServedProducts._together = real


def blocks():
    """Who runs a block, and what it gets."""
    loss, ran = objective(), []
    with fs.serve(loss, distributed=True) as H:
        ran.append("before")
        ran.append(digest(H @ torch.ones(loss.size)))
        ran.append(float(H.to_scipy() @ np.ones(loss.size) @ np.ones(loss.size)))
    ran.append("after")

    def fails():
        with fs.serve(loss, distributed=True) as H:
            H @ torch.ones(loss.size)
            raise ZeroDivisionError("of rank 0")

    return [ran, outcome(fails), outcome(lambda: digest(fs.hessian(loss, distributed=True) @ torch.ones(loss.size)))]


class Late(nn.Module):
    """Cross-entropy that fails on one rank after so many calls, wherever it is copied to."""

    calls, last, rank = 0, 10**9, 1

    def forward(self, outputs, targets):
        Late.calls += 1
        if Late.calls > Late.last and dist.get_rank() == Late.rank:
            raise ArithmeticError("the loss has failed")
        return F.cross_entropy(outputs, targets)


def after(calls, work, rank=1):
    """``work()`` with a loss that fails on a rank after so many calls."""
    Late.calls, Late.last, Late.rank = 0, calls, rank
    try:
        return outcome(work)
    finally:
        Late.last = 10**9


def partial(work):
    """Message of a SpectrumError, and how far its partial result came."""
    try:
        return work().meta["stop_reason"]
    except fs.SpectrumError as error:
        return [str(error), error.partial.products > 0, len(error.partial.eigenvalues) > 0]


def short_of_memory(times):
    """Run out of memory so often on rank 1."""
    plain, left = Products._over_batches, [times]

    def over(self, *arguments):
        if dist.get_rank() == 1 and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return plain(self, *arguments)

    Products._over_batches = over
    return plain


def unlike():
    """Ranks that hold something else: each call is refused on all, and the next one works."""
    rank = dist.get_rank()
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6 * rank
    inputs = data()
    inputs[3][0][2, 1] += rank
    found = {
        "weights": outcome(lambda: fs.spectrum(fs.Objective(model, data(), criterion=F.cross_entropy), distributed=True)),
        "data": outcome(lambda: fs.hessian(fs.Objective(network(), inputs, criterion=F.cross_entropy), distributed=True)),
        "loss": outcome(
            lambda: fs.spectrum(
                objective(criterion=lambda z, y: (1 + rank) * F.cross_entropy(z, y), weight=len), distributed=True
            )
        ),
        "parameters": outcome(lambda: fs.ggn(objective(params=["0.*", "2.*"][: 2 - rank]), distributed=True)),
    }
    directions = fs.Directions(objective(), 8, seed=rank)
    found["directions"] = outcome(lambda: fs.mean_quadratic_form(objective(), directions, distributed=True))
    matrix = fs.hessian(objective(), distributed=True)
    found["calls"] = outcome(lambda: digest(matrix @ torch.ones(matrix.shape[0], 1 + rank)))
    found["after"] = digest(fs.hessian(objective(), distributed=True) @ torch.ones(matrix.shape[0]))
    return found


def failures():
    """What is raised or not finite on one rank."""
    loss = objective(criterion=Late())
    found = {}

    def spectrum():
        return fs.spectrum(loss, 3, nodes=30, method="reverse", distributed=True)

    found["midway"] = after(150, lambda: partial(spectrum))
    found["midway on rank 0"] = after(150, lambda: partial(spectrum), rank=0)
    found["at once"] = after(0, spectrum)
    broken = data()
    broken[1][0][0, 0] = float("nan")
    nan = fs.Objective(network(), broken, criterion=F.cross_entropy)
    found["nan"] = partial(lambda: fs.spectrum(nan, 3, nodes=20, distributed=True))
    expected = digest(fs.hessian(objective(), distributed=True) @ torch.ones(loss.size, 4))
    for times in (1, 100):
        plain = short_of_memory(times)
        try:
            matrix = fs.hessian(objective(), distributed=True)
            image = outcome(lambda: digest(matrix @ torch.ones(loss.size, 4)))  # noqa: B023
            found[f"memory {times}"] = [image == expected if times == 1 else image, matrix.served.short]
        finally:
            Products._over_batches = plain
    found["bad"] = outcome(lambda: fs.hessian(objective(), method="nonsense", distributed=True))
    return found


def interrupted():
    """Ctrl-C reaches all processes, as from a terminal; rank 0 ends with what is known."""
    loss, seen = objective(), []

    def progress(state):
        seen.append(state.products)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before, multiply = process(), Products._over_batches

    def struck(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        Products._over_batches = multiply
        return multiply(self, *arguments)

    if dist.get_rank() == 1:
        Products._over_batches = struck
    result = fs.spectrum(loss, 3, nodes=60, distributed=True, progress=progress)
    return [result.meta["stop_reason"], of_spectrum(result), bool(seen), process() == before]


def killed():
    """One rank dies in the middle of its products."""
    if dist.get_rank() == 1:
        Products._over_batches = lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL)
    return fs.spectrum(objective(), distributed=True).meta["stop_reason"]


@own_group
def groups():
    """Which processes a call takes."""
    loss, found = objective(), {}
    workers = lambda result: result.meta.get("workers", {}).get("size", 0)  # noqa: E731

    def spectrum(of=loss, **options):
        return fs.spectrum(of, 2, nodes=8, **options)

    found["before"] = [workers(spectrum()), outcome(lambda: fs.hessian(loss, distributed=True))[0]]
    found["made"] = [workers(spectrum(distributed=True)), dist.is_initialized(), workers(spectrum(distributed=True))]
    with group():
        found["default"] = [workers(spectrum()), workers(spectrum(distributed=False))]
        found["group"] = workers(spectrum(distributed=dist.group.WORLD))
        wrapped = fs.Objective(nn.parallel.DistributedDataParallel(network()), data(), criterion=F.cross_entropy)
        alone = spectrum(wrapped)
        found["ddp"] = [workers(alone), any("in training" in note for note in alone.notes)]
        wrapped.model(data()[0][0]).sum().backward()
        found["gradients"] = workers(spectrum(fs.Objective(wrapped.model, data(), criterion=F.cross_entropy)))
        pair = dist.new_group([0])
        found["part"] = outcome(lambda: workers(spectrum(distributed=pair)))
        found["wrong"] = outcome(lambda: spectrum(distributed="gloo"))
        if dist.get_rank() == 0:  # which waits for nobody
            found["signature"] = type(fs.signature(loss, learning_rate=0.1, what="spectrum")).__name__
    return found
