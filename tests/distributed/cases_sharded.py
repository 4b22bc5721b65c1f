"""Sharded models on several processes."""

import hashlib
import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.nn import functional as F

import fastscape as fs
from fastscape.objective.replica import _LossModule
from fastscape.objective.sharded_replica import _EvaluatedInPlace

RADII = np.logspace(-4, -1, 4)
RULES = ("tensor", "filter", "module", "global")
WIDTH = 33  # no multiple of any number of processes: uneven shards; the last layer has 3 rows, so some are empty


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Linear(20, WIDTH), nn.GELU(), nn.Sequential(nn.Linear(WIDTH, 17), nn.GELU()), nn.LayerNorm(17), nn.Linear(17, 3)]
    return nn.Sequential(*layers).to(dtype)


def batches(dtype=torch.float32, sizes=(16, 16, 16, 9, 16)):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 20, generator=generator).to(dtype), torch.randint(0, 3, (n,), generator=generator)) for n in sizes]


def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def sharded(dtype=torch.float32, **options):
    model, over = network(dtype), mesh()
    fully_shard(model[2], mesh=over, **options)
    return fully_shard(model, mesh=over, **options)


def objective(model, dtype=torch.float32, **options):
    return fs.Objective(model, batches(dtype), criterion=F.cross_entropy, **options)


def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def bits(model):
    """Everything of a module that a probe might leave changed, of this process."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    local = [parameter.to_local() if hasattr(parameter, "to_local") else parameter for parameter in model.parameters()]
    grads = [None if parameter.grad is None else parameter.grad.to_local() for parameter in model.parameters()]
    held = [*local, *model.buffers(), *(grad for grad in grads if grad is not None)]
    return digest(*(tensor.detach().numpy() for tensor in held)), [module.training for module in model.modules()]


def quiet(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fs.PrecisionWarning)
        return call()


def refusal(call):
    """The words of a ValueError."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return "not refused"


# ---------------------------------------------------------------------- cases


def same_function(dtype):
    """Names, sizes, norms, losses and gradients of the sharded objective against the plain one."""
    plain, cut = objective(network(dtype), dtype), objective(sharded(dtype), dtype)
    expected, found = plain.gradient(), cut.gradient()
    return {
        "size": (plain.size, cut.size),
        "names": (plain.names, cut.names),
        "norm": (plain.norm, cut.norm),
        "fingerprint": (plain.weight_fingerprint(), cut.weight_fingerprint()),
        "loss": (plain.evaluate_once(), cut.evaluate_once()),
        "gradient": max(
            float((found[name].full_tensor() - part).abs().max() / part.abs().max()) for name, part in expected.items()
        ),
        "kinds": sorted({type(part).__name__ for part in found.values()}),
    }


def same_responses(dtype, distribution="gaussian"):
    """Responses byte for byte, by every normalisation that is one number per piece."""
    name, found = str(dtype)[6:], {}
    plain, cut = objective(network(dtype), dtype), objective(sharded(dtype), dtype)
    for rule in RULES if dist.get_world_size() == 2 else RULES[:2]:
        pair = []
        for each, options in ((plain, {"precision": name, "method": "loop", "distributed": False}), (cut, {})):
            directions = fs.Directions(each, 3, seed=7, normalize=rule, distribution=distribution)
            pair.append(quiet(lambda d=directions, e=each, o=options: fs.responses(e, d, RADII, **o)))
        found[rule] = [digest(r.even, r.odd, np.array([r.base, r.weight_norm])) for r in pair]
        found[rule].append(pair[1].precision)
    return found


def same_losses_of_one_batch_and_of_many_blocks():
    """A single batch, which every process evaluates, and a weight of several blocks of sums."""
    found = {}
    for model, rows in ((network(), 1), (nn.Sequential(nn.Linear(20, 2000), nn.Tanh(), nn.Linear(2000, 3)), 2)):
        torch.manual_seed(3)
        model = nn.Sequential(*model) if rows == 1 else model
        data = batches()[:1] if rows == 1 else batches()
        plain = fs.Objective(model, data, criterion=F.cross_entropy)
        expected = fs.losses(plain, fs.Directions(plain, 2), [0.0, 0.1, -0.1], precision="float32", method="loop")
        fully_shard(model, mesh=mesh())
        cut = fs.Objective(model, data, criterion=F.cross_entropy)
        found[rows] = [digest(each.numpy()) for each in (expected, fs.losses(cut, fs.Directions(cut, 2), [0.0, 0.1, -0.1]))]
    return found


def same_multifractal():
    """The multifractal probe in float64, with rotating batches."""
    settings = fs.ProbeSettings((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), count=4, banks=2, precision="float64", bank_batches="rotate")
    analysis = fs.AnalysisSettings(bootstrap=50, permutations=19)
    found, wide = [], torch.float64
    plain = {"method": "loop", "distributed": False}
    for each, options in ((objective(network(wide), wide), plain), (objective(sharded(wide), wide), {})):
        result = fs.multifractal(each, settings, analysis, **options)
        found.append(
            [digest(result.measured.even, result.measured.odd), result.loss, result.accuracy, repr(result.analysis.estimates)]
        )
        found[-1].append(result.meta["weight_fingerprint"])
    return found


def restored():
    """Bits, modes and gradients after a probe and after a forward that raises midway; what a probe finds in training mode."""
    model = sharded()
    F.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    model.train()
    model[3].eval()
    before = bits(model)
    cut = objective(model)
    directions = fs.Directions(cut, 2)
    quiet(lambda: fs.responses(cut, directions, RADII))
    cut.gradient()
    after = bits(model)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("of the model")

    handle, words = model[4].register_forward_hook(fail), ""
    try:
        quiet(lambda: fs.responses(cut, directions, RADII))
    except RuntimeError as error:
        words = str(error)
    handle.remove()
    return {"before": before, "after": after, "raised": words, "then": bits(model)}


def stale():
    """Without the guard, losses at displaced weights are those of a half of the model: the guard is what makes them right."""
    plain = objective(network())
    expected = fs.losses(plain, fs.Directions(plain, 1), [0.0, 0.1], precision="float32", method="loop")
    cut = objective(sharded())
    directions = fs.Directions(cut, 1)
    guarded = fs.losses(cut, directions, [0.0, 0.1])
    guard, _EvaluatedInPlace.forward = _EvaluatedInPlace.forward, _LossModule.forward
    try:
        unguarded = fs.losses(cut, directions, [0.0, 0.1])
    finally:
        _EvaluatedInPlace.forward = guard
    return {
        "expected": expected.tolist(),
        "guarded": guarded.tolist(),
        "unguarded": unguarded.tolist(),
        "again": fs.losses(cut, directions, [0.0, 0.1]).tolist(),
    }


def forwards():
    """Every process makes the same number of forwards."""
    model, calls = sharded(), []
    cut = objective(model)
    directions = fs.Directions(cut, 1)
    model.register_forward_hook(lambda *_: calls.append(1))
    fs.losses(cut, directions, [0.1])
    return len(calls)


def refused():
    """Words of every refusal; the same in all processes."""
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    cut = objective(sharded())
    directions = fs.Directions(cut, 2)
    other = fully_shard(nn.Linear(20, 4), mesh=mesh(), shard_placement_fn=lambda p: Shard(1) if p.ndim > 1 else Shard(0))
    reduced = objective(sharded(mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.bfloat16)))
    sampled = [batch for index, batch in enumerate(batches()) if index % dist.get_world_size() == dist.get_rank()]
    normed = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    fully_shard(normed, mesh=mesh())
    calls = {
        "param_dtype": lambda: objective(sharded(mp_policy=half)),
        "reshard_after_forward": lambda: objective(sharded(reshard_after_forward=False)),
        "placement": lambda: objective(other),
        "element": lambda: fs.Directions(cut, 2, normalize="element"),
        "precision": lambda: fs.responses(cut, directions, RADII, precision="float64"),
        "difference": lambda: fs.responses(cut, directions, RADII, precision="difference"),
        "path": lambda: fs.responses(cut, directions, RADII, method="vmap"),
        "dtype": lambda: fs.Objective(sharded(), batches(), criterion=F.cross_entropy, dtype=torch.float64),
        "half": lambda: fs.responses(bf16 := objective(sharded(torch.bfloat16)), fs.Directions(bf16, 2), RADII),
        "at": lambda: cut.at(network().state_dict()),
        "given": lambda: fs.Directions.given(cut, {"0.weight": torch.ones(WIDTH, 20)}),
        "batch norm": lambda: objective(normed, batch_norm="batch"),
        "budget": lambda: fs.multifractal(cut, budget="1s"),
        "spectrum budget": lambda: fs.spectrum(cut, budget="1s"),
        "optimizer": lambda: fs.spectrum(cut, optimizer=torch.optim.SGD(cut.model.parameters(), lr=0.1)),
        "ggn": lambda: fs.spectrum(cut, operator="ggn"),
        "spectrum path": lambda: fs.spectrum(cut, method="graph"),
        "hessian": lambda: fs.hessian(cut) @ torch.ones(cut.size),
        "slice": lambda: fs.slice1d(cut, directions),
        "sharpness": lambda: fs.sharpness(cut),
        "reduce_dtype": lambda: reduced.gradient(),
        "data": lambda: fs.Objective(sharded(), sampled, criterion=F.cross_entropy),
    }
    return {name: refusal(call) for name, call in calls.items()}


def nondeterministic():
    """A loss that changes between two evaluations is refused before any weight is written."""
    model = sharded()
    before, counter = bits(model), []

    def loss(module, batch):
        counter.append(1)
        return F.cross_entropy(module(batch[0]), batch[1]) + 1e-3 * len(counter)

    cut = fs.Objective(model, batches(), loss=loss, weight=lambda batch: len(batch[1]))
    try:
        fs.responses(cut, fs.Directions(cut, 1), RADII)
    except fs.NondeterministicLossError as error:
        return [str(error), bits(model) == before]
    return ["not refused", True]


def beside():
    """Frozen parameters, plain ones beside sharded ones, and models of DTensor alone, replicated and cut."""
    found, over = {}, mesh()
    frozen = network()
    frozen[0].requires_grad_(False)
    mixed = network()
    for name, make in (
        ("frozen", lambda: fully_shard(frozen, mesh=over)),
        ("plain beside", lambda: (fully_shard(mixed[2], mesh=over), mixed)[1]),
        ("replicated", lambda: distributed(network(), over, [Replicate()])),
        ("cut", lambda: distributed(network(), over, [Shard(0)])),
    ):
        plain = network()
        plain[0].requires_grad_(name != "frozen")
        whole, model = objective(plain), make()
        cut = objective(model)
        directions = [fs.Directions(each, 2) for each in (whole, cut)]
        expected = quiet(
            lambda w=whole, d=directions: fs.responses(w, d[0], RADII, precision="float32", method="loop", distributed=False)
        )
        got = quiet(lambda c=cut, d=directions: fs.responses(c, d[1], RADII))
        gradients = whole.gradient(), cut.gradient()
        off = [
            float(((part.full_tensor() if hasattr(part, "full_tensor") else part) - gradients[0][key]).abs().max())
            for key, part in gradients[1].items()
        ]
        close = [bool(np.allclose(a, b, rtol=1e-4, atol=1e-6)) for a, b in ((got.even, expected.even), (got.odd, expected.odd))]
        found[name] = [digest(expected.even, expected.odd) == digest(got.even, got.odd), close, max(off)]
    return found


def hybrid():
    """Shards that several groups of processes hold alike."""
    over = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    model = network()
    fully_shard(model[2], mesh=over)
    plain, cut = objective(network()), objective(fully_shard(model, mesh=over))
    radii = [0.0, 0.1, -0.01]
    losses = [fs.losses(each, fs.Directions(each, 2), radii, precision="float32", method="loop").numpy() for each in (plain, cut)]
    expected, found = plain.gradient(), cut.gradient()
    off = max(float((found[name].full_tensor() - part).abs().max() / part.abs().max()) for name, part in expected.items())
    return [digest(each) for each in losses], off


def distributed(model, over, placements):
    """A model of DTensors whose forward takes and gives plain tensors."""

    def cut(_name, module, on):
        for key, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(key, nn.Parameter(distribute_tensor(parameter.detach(), on, placements)))

    return distribute_module(
        model,
        over,
        cut,
        lambda _module, inputs, on: tuple(distribute_tensor(x, on, [Replicate()]) for x in inputs),
        lambda _module, outputs, _on: outputs.full_tensor(),
    )


def products(dtype):
    """Products and the spectrum against those of the plain Hessian, relative to the product."""
    from fastscape.curvature.sharded import ShardedHessian

    plain, cut = objective(network(dtype), dtype), objective(sharded(dtype), dtype)
    before = bits(cut.model)
    operator = ShardedHessian(cut)
    block = torch.randn(cut.size, 2, dtype=dtype, generator=torch.Generator().manual_seed(5))
    expected = fs.hessian(plain, method="graph") @ block
    found = operator @ block
    spectrum = fs.spectrum(cut, 2, nodes=12, targets={"trace": None})
    reference = fs.spectrum(plain, 2, nodes=12, targets={"trace": None}, method="graph")
    return {
        "product": float((found - expected).norm() / expected.norm()),
        "error": operator.choice.error,
        "bits": digest(found.numpy()),
        "eigenvalues": [spectrum.eigenvalues.tolist(), reference.eigenvalues.tolist()],
        "residuals": [spectrum.residuals.tolist(), reference.residuals.tolist()],
        "traces": [spectrum.trace.value, reference.trace.value],
        "data error": spectrum.trace_data_stderr,
        "restored": bits(cut.model) == before,
        "path": spectrum.meta["path"],
    }


CASES = {
    "same function, float32": lambda: same_function(torch.float32),
    "same function, float64": lambda: same_function(torch.float64),
    "responses, float32": lambda: same_responses(torch.float32),
    "responses, float64": lambda: same_responses(torch.float64),
    "responses, signs": lambda: same_responses(torch.float32, "rademacher"),
    "one batch, many blocks": same_losses_of_one_batch_and_of_many_blocks,
    "multifractal": same_multifractal,
    "restored": restored,
    "stale": stale,
    "forwards": forwards,
    "refused": refused,
    "nondeterministic": nondeterministic,
    "beside": beside,
    "hybrid": hybrid,
    "products, float32": lambda: products(torch.float32),
    "products, float64": lambda: products(torch.float64),
}


def everything(names):
    """What some cases find, by name: one start of the processes serves all."""
    return {name: CASES[name]() for name in names}
