"""Products at points where torch's second derivatives, float32 or an inner autocast fail: right, or refused with the reason."""

import numpy as np
import pytest
import torch
from curvature_dense import relative
from torch import nn
from torch.nn import functional as F

import fastscape as fs

GENERATOR = torch.Generator().manual_seed(0)
POINTS = torch.randn(6, 3, generator=GENERATOR, dtype=torch.float64)
VALUES = torch.randn(6, 2, generator=GENERATOR, dtype=torch.float64)
PATHS = ("graph", "graph, batched", "forward", "reverse")


class Centres(nn.Module):
    """Distances to centres that start at samples, as k-means and radial basis functions do: each is zero for one of them."""

    def __init__(self, distance):
        super().__init__()
        self.centres, self.head = nn.Parameter(POINTS[:4].clone()), nn.Linear(4, 2).double()
        self.distance = distance

    def forward(self, x):
        return self.head(torch.exp(-0.3 * self.distance(x[:, None], self.centres.to(x.dtype))))


def square(x, c):
    return (x - c).square().sum(-1)


SMOOTH_TOGETHER = {  # operations that are singular at zero, and what they are together
    "vector_norm": (lambda x, c: torch.linalg.vector_norm(x - c, dim=-1) ** 2, square),
    "norm": (lambda x, c: (x - c).norm(dim=-1).square(), square),
    "matrix_norm": (lambda x, c: torch.linalg.matrix_norm((x - c)[..., None]) ** 2, square),
    "pairwise_distance": (lambda x, c: F.pairwise_distance(*torch.broadcast_tensors(x, c), eps=0.0) ** 2, square),
    "cdist": (lambda x, c: torch.cdist(x[:, 0], c) ** 2, square),
    "root": (lambda x, c: square(x, c).sqrt() ** 2, square),
    "std": (lambda x, c: (x - c).std(-1) ** 2, lambda x, c: (x - c).var(-1)),
    "hypot": (lambda x, c: torch.hypot((x - c)[..., 0], (x - c)[..., 1]) ** 2, lambda x, c: square(x[..., :2], c[..., :2])),
    "normalize": (
        lambda x, c: (F.normalize(x - c, dim=-1) * torch.linalg.vector_norm(x - c, dim=-1, keepdim=True)).square().sum(-1),
        square,
    ),
    "complex modulus": (
        lambda x, c: torch.complex((x - c)[..., 0], (x - c)[..., 1]).abs() ** 2,
        lambda x, c: square(x[..., :2], c[..., :2]),
    ),
}


def made(distance, dtype=torch.float64):
    torch.manual_seed(0)
    return fs.Objective(Centres(distance), [(POINTS.to(dtype), VALUES.to(dtype))], criterion=squares, dtype=dtype)


def squares(outputs, targets):
    """Not torch's, whose forward derivatives fail."""
    return (outputs - targets).square().mean()


def true_hessian(objective, distance):
    """Central differences of float64 gradients of the smooth function, by autograd alone."""
    model = Centres(distance)
    model.load_state_dict(objective.model.state_dict())
    parameters = list(model.parameters())

    def gradient():
        return torch.cat([g.flatten() for g in torch.autograd.grad(F.mse_loss(model(POINTS), VALUES), parameters)])

    rows, step = [], 1e-5
    for tensor in parameters:
        flat = tensor.data.view(-1)
        for i in range(len(flat)):
            kept = float(flat[i])
            sides = []
            for sign in (1, -1):
                flat[i] = kept + sign * step
                sides.append(gradient())
            flat[i] = kept
            rows.append((sides[0] - sides[1]) / (2 * step))
    return torch.stack(rows)


IN_FLOAT32 = ("vector_norm", "std")


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float64) for kind in SMOOTH_TOGETHER), *((kind, torch.float32) for kind in IN_FLOAT32)]
)
def test_what_is_smooth_only_together_has_its_own_hessian(kind, dtype):
    distance, plain = SMOOTH_TOGETHER[kind]
    objective = made(distance, dtype)
    expected = true_hessian(objective, plain)
    operator = fs.hessian(objective)
    found = (operator @ torch.eye(objective.size, dtype=dtype)).double()
    told = found.isfinite()  # along directions that leave a distance at zero, the gradient itself is NaN for roots
    assert told.all() or not torch.cat([part.flatten() for part in objective.gradient().values()]).isfinite().all()
    assert relative(found[told], expected[told]) < (3e-3 if dtype == torch.float32 else 1e-6)
    assert operator.choice.refused


@pytest.mark.parametrize("path", PATHS)
def test_a_path_asked_for_that_is_wrong_at_the_point_is_refused(path):
    objective = made(SMOOTH_TOGETHER["vector_norm"][0])
    with pytest.raises(ValueError, match=r"(NaN or inf where the gradient has none|by losses nearby).*gradient difference"):
        fs.hessian(objective, method=path) @ torch.ones(objective.size, dtype=torch.float64)


@pytest.mark.parametrize("kind", SMOOTH_TOGETHER)
def test_forms_at_the_point_are_those_of_the_hessian_or_refused(kind):
    distance, plain = SMOOTH_TOGETHER[kind]
    objective = made(distance)
    directions = fs.Directions(objective, 6)
    flats = torch.stack([torch.cat([t.double().flatten() for t in directions[i].values()]) for i in range(6)])
    expected = ((flats @ true_hessian(objective, plain)) * flats).sum(1).numpy()
    try:
        found = fs.quadratic_forms(objective, directions)
    except ValueError as error:
        assert "must resolve the forms" in str(error)  # noqa: PT017 - a refusal is as right
        return
    np.testing.assert_allclose(found.curvature, expected, atol=2e-4 * np.abs(expected).max())
    if found.path.name == "forwards":
        assert "losses nearby" in found.path.reason or "cannot follow" in found.path.reason


@pytest.mark.parametrize("path", ["graph", "dispatch"])
def test_exact_forms_asked_for_at_the_point_are_refused(path):
    objective = made(SMOOTH_TOGETHER["vector_norm"][0])
    with pytest.raises(ValueError, match="by losses nearby"):
        fs.quadratic_forms(objective, fs.Directions(objective, 3), method=path)


def test_a_kink_at_the_weights_has_no_second_derivative():
    objective = made(lambda x, c: torch.linalg.vector_norm(x - c, dim=-1))
    with pytest.raises(fs.NoPathError, match="NaN or inf where the gradient has none"):
        fs.hessian(objective) @ torch.ones(objective.size, dtype=torch.float64)
    with pytest.raises(ValueError, match="one with a kink"):
        fs.quadratic_forms(objective, fs.Directions(objective, 3))


class Penalised(nn.Module):
    """A layer whose bias starts at zero, under a norm that is not squared: a group lasso."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        nn.init.zeros_(self.layer.bias)


def test_a_norm_of_zero_weights_is_a_kink():
    torch.manual_seed(0)
    model = Penalised()
    objective = fs.Objective(
        model, [(POINTS, VALUES)], loss=lambda m, b: F.mse_loss(m.layer(b[0]), b[1]) + sum(p.norm() for p in m.parameters())
    )
    with pytest.raises(fs.NoPathError):
        fs.hessian(objective) @ torch.ones(objective.size, dtype=torch.float64)


def test_products_that_overflow_in_float32_are_taken_in_float64():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.s = nn.Parameter(torch.tensor([1e-25, 0.7, 1.3, 0.9])), nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            return torch.prod(self.w * x, -1) * 1e20 + self.s * x.sum(-1)

    x, y = POINTS.abs().float()[:, [0, 1, 2, 0]] + 0.5, VALUES[:, 0].float()
    objective = fs.Objective(Experts(), [(x, y)], criterion=F.mse_loss)
    wide = [tensor.double() for tensor in objective.base.values()]

    def loss(w, s):
        product = w[0] * w[1] * w[2] * w[3] * x.double().prod(-1)
        return F.mse_loss(product * 1e20 + s * x.double().sum(-1), y.double())

    blocks = torch.autograd.functional.hessian(loss, tuple(wide))
    expected = torch.cat([torch.cat([b.reshape(n, -1) for b in row], 1) for n, row in zip((4, 1), blocks, strict=True)])
    operator = fs.hessian(objective)
    found = operator @ torch.eye(5)
    assert found.dtype == operator.dtype == torch.float64
    assert relative(found, expected) < 1e-9
    assert "float64" in operator.notes[0]


# ---------------------------------------------------------------- autocast


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))


class Mixed(nn.Module):
    """A network that enters an autocast itself."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.inner, self.dtype = network(), dtype

    def forward(self, x):
        with torch.autocast("cpu", dtype=self.dtype):
            return self.inner(x).float()


def in_the_loss(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.mse_loss(model(batch[0]), batch[1])


@torch.autocast("cpu", dtype=torch.bfloat16)
def decorated(model, batch):
    return F.mse_loss(model(batch[0]).float(), batch[1])


BATCH = POINTS.float(), VALUES.float()
AUTOCAST = {
    "forward": lambda: fs.Objective(Mixed(), [BATCH], criterion=F.mse_loss),
    "float16": lambda: fs.Objective(Mixed(torch.float16), [BATCH], criterion=F.mse_loss),
    "loss": lambda: fs.Objective(network(), [BATCH], loss=in_the_loss),
    "decorator": lambda: fs.Objective(network(), [BATCH], loss=decorated),
}


def plain_hessian():
    """Of the same function in float64 without autocast, by differences of gradients."""
    model = network().double()
    parameters = list(model.parameters())

    def gradient():
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(F.mse_loss(model(POINTS.float().double()), TARGET), parameters)]
        )

    rows = []
    for tensor in parameters:
        flat = tensor.data.view(-1)
        for i in range(len(flat)):
            kept, sides = float(flat[i]), []
            for sign in (1, -1):
                flat[i] = kept + sign * 1e-5
                sides.append(gradient())
            flat[i] = kept
            rows.append((sides[0] - sides[1]) / 2e-5)
    return torch.stack(rows)


TARGET = VALUES.float().double()


@pytest.mark.parametrize("where", AUTOCAST)
def test_an_inner_autocast_leaves_the_hessian_of_the_function_and_is_named(where, untouched):
    objective = AUTOCAST[where]()
    with untouched(objective.model):
        operator = fs.hessian(objective)
        found = operator @ torch.eye(objective.size)
    assert relative(found.double(), plain_hessian()) < 1e-5
    assert any("without your autocast to" in note for note in operator.notes)


def test_spectra_and_stability_of_a_network_with_autocast_inside():
    objective, expected = AUTOCAST["forward"](), plain_hessian()
    top = float(torch.linalg.eigvalsh(expected)[-1])
    spectrum = fs.spectrum(objective, k=1)
    assert spectrum.lambda_max == pytest.approx(top, rel=1e-4)
    assert any("without your autocast to bfloat16" in note for note in spectrum.notes)
    edge = fs.edge_of_stability(objective, torch.optim.SGD(objective.model.parameters(), lr=0.1))
    assert edge.sharpness == pytest.approx(top, rel=1e-2)
    assert any("autocast" in note for note in edge.notes)
    assert (fs.ggn(objective) @ torch.ones(objective.size)).isfinite().all()


class Cast(nn.Module):
    """One layer in bfloat16, whatever the model's dtype, and one that is not."""

    def __init__(self):
        super().__init__()
        self.coarse, self.fine = nn.Linear(3, 8), nn.Linear(3, 2)

    def forward(self, x):
        low = torch.bfloat16
        return F.linear(x.to(low), self.coarse.weight.to(low), self.coarse.bias.to(low)).tanh().sum(-1, True).to(
            x.dtype
        ) + self.fine(x)


def test_differences_of_gradients_below_the_resolution_of_a_cast_are_not_taken():
    """Below it they leave out, without a trace, what the cast layer adds."""
    torch.manual_seed(0)
    objective = fs.Objective(Cast(), [BATCH], criterion=F.mse_loss)
    with pytest.raises(ValueError, match="bfloat16"):
        fs.hessian(objective, method="gradient difference") @ torch.ones(objective.size)


def test_a_linear_loss_has_products_that_are_exactly_zero_on_every_path():
    torch.manual_seed(0)
    objective = fs.Objective(nn.Linear(3, 2), [BATCH], criterion=lambda out, target: F.relu(1 - target * out).mean())
    for path in (None, "graph", "reverse", "gradient difference"):
        assert not (fs.hessian(objective, method=path) @ torch.eye(objective.size)).any()


class Forgetful(torch.autograd.Function):
    """The square, whose backward says that it does not depend on its input."""

    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 0 * gradient


@pytest.mark.parametrize("path", [None, "graph", "gradient difference"])
def test_products_of_zero_that_the_losses_do_not_bear_out_are_refused(path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    objective = fs.Objective(model, [BATCH], loss=lambda m, b: Forgetful.apply(m(b[0])).mean())
    with pytest.raises(ValueError if path else fs.NoPathError, match="gradient is not that of the loss"):
        fs.hessian(objective, method=path) @ torch.ones(objective.size)


def test_a_detached_part_is_named():
    """Its second derivative is automatic differentiation's, of a function in which the part stands still."""
    torch.manual_seed(0)
    model = network()
    objective = fs.Objective(model, [BATCH], loss=lambda m, b: (m(b[0]) * m(b[0]).detach().square().mean()).square().mean())
    operator = fs.hessian(objective)
    try:
        operator @ torch.ones(objective.size)
    except fs.AsymmetricProductError:
        return
    assert any("detached" in note for note in operator.notes)


class Once(torch.autograd.Function):
    """A square whose backward refuses to be differentiated, as those of torchvision's operations on boxes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, up):
        if torch.is_grad_enabled():
            raise RuntimeError("double backwards not supported")
        return 2 * ctx.saved_tensors[0] * up


@pytest.mark.parametrize("cast", [torch.float64, torch.float32], ids=["float64", "through float32"])
def test_differences_of_gradients_of_a_detached_part_are_refused_with_the_cause(cast):
    """They are the Jacobian of a field that is no gradient: u'Jv is not v'Ju."""
    torch.manual_seed(0)

    def loss(model, batch, detached=True):
        out = model(batch[0])
        boxes = (out.detach() if detached else out).to(cast).to(out.dtype)
        return Once.apply(out * boxes.sin().sum(-1, keepdim=True)).mean()

    model = network()
    stopped = fs.Objective(model, [BATCH], loss=loss)
    vector = torch.ones(stopped.size)
    with pytest.raises(fs.NoPathError, match="the gradient is not that of the loss .a part is detached"):
        fs.hessian(stopped) @ vector
    whole = fs.hessian(fs.Objective(model, [BATCH], loss=lambda m, b: loss(m, b, detached=False)))
    whole @ vector
    assert whole.choice.name == "gradient difference"


SINGULAR_CRITERIA = {
    "norm": lambda out, target: torch.linalg.vector_norm(out - target, dim=-1).square().mean(),
    "cdist": lambda out, target: torch.cdist(out[:, None], target[:, None]).square().mean(),
    "std": lambda out, target: 2 * ((out - target).std(-1, correction=0) ** 2 + (out - target).mean(-1) ** 2).mean(),
}


@pytest.mark.parametrize("kind", SINGULAR_CRITERIA)
@pytest.mark.parametrize("make", [fs.ggn, fs.hessian])
def test_a_criterion_that_is_singular_where_a_sample_is_fitted_has_its_own_matrix(kind, make):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    targets = model(POINTS).detach()
    targets[2:] += VALUES[2:]  # the first two are fitted exactly
    plain = fs.Objective(model, [(POINTS, targets)], criterion=lambda out, target: (out - target).square().sum(-1).mean())
    objective = fs.Objective(model, [(POINTS, targets)], criterion=SINGULAR_CRITERIA[kind])
    eye = torch.eye(8, dtype=torch.float64)
    assert relative(make(objective) @ eye, make(plain) @ eye) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [1, 2, 4, 7, 8, 9, 11, 19, 22])
def test_a_loss_that_casts_the_outputs_to_float32_has_the_derivatives_of_the_same_without(seed, dtype):
    """Rounding of the losses nearby, as of libraries that take cross-entropy of ``logits.float()``, contradicts no product."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)
    data = [(torch.randn(12, 6).to(dtype), torch.randint(0, 4, (12,)))]
    rounding = fs.Objective(net, data, criterion=lambda outputs, targets: F.cross_entropy(outputs.float(), targets))
    plain = fs.Objective(net, data, criterion=F.cross_entropy)
    directions, vector = fs.Directions(plain, 3), torch.ones(plain.size, dtype=dtype)
    for operator in (fs.hessian, fs.ggn):
        torch.testing.assert_close(operator(rounding) @ vector, operator(plain) @ vector, rtol=1e-3, atol=1e-4)
    found, expected = fs.quadratic_forms(rounding, directions), fs.quadratic_forms(plain, directions)
    assert found.path.name == expected.path.name != "forwards"
    np.testing.assert_allclose(found.curvature, expected.curvature, rtol=1e-3, atol=1e-5)
