"""Arguments for every registered op: what the contract suite calls them with."""

import torch

# ops whose every implementation gives the same bits; the others agree to rounding
BITWISE = {"fixed_point_sum", "fixed_point_value", "row_largest", "direction", "direction_dot", "direction_norms", "perturb"}
PRODUCTS = {"linear_difference", "perturbed_linear"}  # matrix products of torch, whose sums may depend on the threads
FIRSTS = [2049, 16385, 3, 2**34 - 45]  # of slices of the whole parameters
DIRECTIONS = [0, 7, 2**32 - 1]


def _weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((33, 131), (5,), (0,), (3, 5, 3))]


def _ids(count=4):
    return torch.tensor([7, 2**32 - 1, 0, 1234][:count])


def _scales(directions, pieces):
    return torch.rand(directions, pieces, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def direction():
    """Several tensors, one of them empty; K = 3, 1 and 0."""
    sizes = [4323, 5, 0, 45]
    yield from ((_ids(), 2**62, indices, sizes, kind) for indices in (DIRECTIONS, [3]) for kind in ("gaussian", "rademacher"))
    yield _ids(), -1, [], sizes, "gaussian"
    for kind in ("gaussian", "rademacher"):
        yield _ids(), 5, [3, 2**32 - 1], sizes, kind, FIRSTS


def direction_norms():
    """Whole tensors and rows."""
    sizes = [4323, 5, 0, 45]
    yield _ids(), 5, DIRECTIONS, sizes, [33, 1, 1, 3], "gaussian"
    yield _ids(1), 5, [0], [40_001], [1], "gaussian"
    yield _ids(), 5, [0], sizes, [1, 1, 1, 1], "rademacher"
    yield _ids(), 5, [0], sizes, [33, 1, 1, 3], "gaussian", FIRSTS


def direction_dot():
    """All dtypes of vectors."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        yield _weights(dtype), _ids(), 5, DIRECTIONS, [33, 1, 1, 3], "gaussian"
    yield _weights(), _ids(), 5, [1], [1, 5, 1, 1], "rademacher"
    yield _weights(), _ids(), 5, [1], [1, 5, 1, 1], "rademacher", FIRSTS
    yield _weights(), _ids(), 5, [1], [33, 5, 1, 1], "gaussian", FIRSTS


def perturb():
    """All dtypes of results, rows, one and several radii."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        yield _weights(), _ids(), 5, DIRECTIONS, _scales(3, 38), [33, 1, 1, 3], [0.0, 0.25, -0.25], dtype, "gaussian"
    yield _weights(torch.float64), _ids(), 5, [1], _scales(1, 4), [1, 1, 1, 1], [0.5], torch.float64, "rademacher"
    yield _weights(torch.bfloat16), _ids(), 5, [1], _scales(1, 4), [1, 1, 1, 1], [0.5], torch.bfloat16, "gaussian"
    yield _weights(torch.float16), _ids(), 5, [1], _scales(1, 4), [1, 1, 1, 1], [0.5], torch.float32, "gaussian"
    for kind in ("gaussian", "rademacher"):
        yield _weights(), _ids(), 5, [1], _scales(1, 38), [33, 1, 1, 3], [0.5, -0.5], torch.float32, kind, FIRSTS
    for dtype in (torch.float32, torch.bfloat16):
        odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 3e38, 1e-45])
        yield [odd], _ids(1), 5, [1], _scales(1, 1), [1], [0.0, 0.5], dtype, "gaussian"


def _rows(count, length, dtype):
    return torch.randn(count, length, generator=torch.Generator().manual_seed(count)).to(dtype)


def block_gram():
    """One and several rows, more than a block of columns, both dtypes, nothing."""
    for dtype in (torch.float32, torch.float64):
        yield _rows(3, 20_001, dtype), _rows(2, 20_001, dtype)
        yield _rows(1, 7, dtype), _rows(5, 7, dtype)
    yield _rows(2, 0, torch.float32), _rows(0, 0, torch.float32)


def block_update():
    """As for the products."""
    for dtype in (torch.float32, torch.float64):
        yield _rows(2, 20_001, dtype), _rows(3, 20_001, dtype), _rows(3, 2, torch.float64)
        yield _rows(5, 7, dtype), _rows(1, 7, dtype), _rows(1, 5, torch.float64)


def perturbed_linear():
    """Shared and separate inputs, both distributions, all dtypes that kernels take, and a width that is no multiple of 4."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        eps, scales = _rows(2, 5, torch.float32), torch.tensor([0.5, 0.25], dtype=torch.float64)
        x, weight = _rows(10, 128, dtype).reshape(2, 5, 128), _rows(6, 128, dtype)
        yield x, weight, 7, 3, [0, 9], scales, eps, "gaussian"
        yield x, weight, 7, 3, [0, 9], scales, eps, "rademacher"
    yield x, weight, 7, 3, [0, 9], scales, eps, "rademacher", 3, 2**32 - 1
    yield x[0].float(), weight.float(), 7, 3, [0, 9], scales, eps, "gaussian", 3, 8
    yield _rows(5, 9, torch.float32).reshape(1, 5, 9), _rows(6, 9, torch.float32), 7, 3, [1], scales[:1], eps[:1], "gaussian"


def linear_difference():
    """Lanes absent, of one order and of two, the same for all radii or not; weight, bias, both or neither moving."""
    radii = torch.tensor([0.0, 1e-3, 0.3], dtype=torch.float64)
    for dtype, wide in ((torch.float32, torch.float32), (torch.float32, torch.float64), (torch.float64, torch.float64)):
        x, weight = _rows(5, 9, wide), _rows(6, 9, dtype)
        lanes = _rows(60, 9, dtype).reshape(2, 2, 3, 5, 9)
        direction, bias = _rows(12, 9, dtype).reshape(2, 6, 9), _rows(2, 6, dtype)
        yield x, lanes, radii, weight, direction, bias
        yield x, lanes[:, :, :1], radii, weight, direction, None
        yield x, lanes[:, :1], radii, weight, direction, None
        yield x, lanes[:, :1, :1], radii, weight, None, bias
        yield x, None, radii, weight, direction, bias
    left, right = _rows(8, 6, dtype).reshape(2, 4, 6), _rows(8, 9, dtype).reshape(2, 4, 9)
    for known in (lanes, lanes[:, :1, :1], None):
        yield x, known, radii, weight, left, bias, right
    yield x[:0], lanes[:, :, :, :0], radii, weight, direction, bias


def _radii():
    return torch.tensor([0.0, 1e-3, 0.3], dtype=torch.float64)


KINDS = {
    "abs": [],
    "clamp": [-0.5, 0.75],
    "elu": [1.25, 1.5, 0.75],
    "exp": [],
    "gelu": [],
    "gelu_tanh": [],
    "hardsigmoid": [],
    "hardswish": [],
    "leaky_relu": [0.25],
    "mish": [],
    "relu": [],
    "sigmoid": [],
    "silu": [],
    "softplus": [2.0],
    "tanh": [],
}


def lanes(shape, directions=2, parts=2, radii=3, base=torch.float64, dtype=torch.float32, seed=0):
    """A base value in [-4, 4], some of it at breakpoints, and its lanes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64) * 8 - 4
    x.view(-1)[::7] = x.view(-1)[::7].round()
    return x.to(base), torch.randn(directions, parts, radii, *shape, generator=generator, dtype=torch.float64).to(dtype)


def pointwise_difference():
    """Every kind on a wide base; the other dtypes, lanes without b, shared by the radii; nothing."""
    for kind, options in KINDS.items():
        yield *lanes((3, 37)), _radii(), kind, options
    for kind in ("relu", "gelu"):
        for base in (torch.float32, torch.float64):
            yield *lanes((5,), base=base, dtype=base), _radii(), kind, []
        yield *lanes((1031,), parts=1, radii=1), _radii(), kind, []
        yield *lanes((), directions=1, radii=1), _radii(), kind, []
    yield *lanes((2, 0)), _radii(), "gelu", []


def affine_difference():
    """Channels in the middle and last, all dtypes, lanes without b, shared by the radii, parameters that do not move."""
    scale, moves = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64), _rows(4, 3, torch.float32)
    yield *lanes((2, 3, 35)), _radii(), scale, moves[:2], moves[2:]
    for dtype in (torch.float32, torch.float64):
        yield *lanes((35, 3, 1), base=dtype, dtype=dtype), _radii(), scale.to(dtype), moves[:2].to(dtype), None
    yield *lanes((1, 3, 400), parts=1, radii=1), _radii(), scale, None, moves[:2]
    yield *lanes((1, 3, 400), parts=1, radii=1), _radii(), scale, moves[:2], None
    yield *lanes((0, 3, 4)), _radii(), scale, None, None


def _lanes(x, directions, dtype, *, both=True, radii=2):
    generator = torch.Generator().manual_seed(directions)
    return torch.randn(directions, 1 + both, radii, *x.shape, generator=generator, dtype=torch.float64).to(dtype)


PAIRS = [(torch.float64, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]


def _pair():
    return torch.tensor([0.0, 1e-3], dtype=torch.float64)


def softmax_difference():
    """Every pair of dtypes, masks, one lane and two, shared lanes, rows of one entry and of many, nothing."""
    for base, dtype in PAIRS:
        x = 3 * _rows(5, 67, base)
        x[1, ::3] = -torch.inf
        yield x, _lanes(x, 2, dtype), _pair()
        yield x, _lanes(x, 3, dtype, both=False, radii=1), torch.tensor([1e-7, 0.2, 1.0]).double()
    x = _rows(2, 5000, torch.float32)
    yield x, _lanes(x, 1, torch.float32, radii=1), _pair()[1:]
    for rows, length in ((3, 1), (0, 4)):
        x = _rows(rows, length, torch.float64)
        yield x, _lanes(x, 2, torch.float32), _pair()


def layer_norm_difference():
    """Every pair of dtypes, with and without weights and directions, centred or not."""
    for base, dtype in PAIRS:
        x, weights = 3 * _rows(5, 67, base) + 1, _rows(5, 67, dtype)
        yield x, _lanes(x, 2, dtype), _pair(), weights[0], weights[1:3], weights[3:], 1e-5, True
        yield x, _lanes(x, 3, dtype, both=False, radii=1), _pair(), None, None, None, 1e-5, False
        yield x, _lanes(x, 2, dtype, radii=1), _pair().add(0.5), weights[0].to(base), None, weights[3:], 1e-5, True
    x = _rows(2, 5000, torch.float32)
    yield x, _lanes(x, 1, torch.float32, radii=1), _pair()[1:], None, torch.ones(1, 5000), None, 1e-5, True
    x = _rows(0, 4, torch.float64)
    yield x, _lanes(x, 2, torch.float32), _pair(), None, None, None, 1e-5, True


def cross_entropy_difference():
    """Every pair of dtypes, likely and unlikely targets, masks, many classes, nothing."""
    for base, dtype in PAIRS:
        x = 3 * _rows(5, 67, base)
        target = torch.tensor([int(x[0].argmax()) % 66, 2, 4, 7, 65])
        x[1, ::3] = -torch.inf
        yield x, _lanes(x, 2, dtype), _pair(), target
        yield x, _lanes(x, 3, dtype, both=False, radii=1), torch.tensor([1e-7, 0.2, 1.0]).double(), target
    x = _rows(2, 5000, torch.float32)
    yield x, _lanes(x, 1, torch.float32, radii=1), _pair()[1:], torch.tensor([0, 4999])
    x = _rows(0, 4, torch.float64)
    yield x, _lanes(x, 2, torch.float32), _pair(), torch.zeros(0, dtype=torch.int64)


def max_pool2d_difference():
    """Every pair of dtypes, ties, windows that overlap, overhang and skip, one column, nothing."""
    shapes = [
        ([2, 2], [2, 2], [0, 0], [1, 1], [4, 18]),
        ([3, 3], [2, 2], [1, 1], [1, 1], [5, 19]),
        ([3, 2], [1, 3], [1, 0], [2, 3], [6, 12]),
        ([2, 5], [3, 1], [1, 2], [1, 1], [4, 37]),
    ]
    for base, dtype in PAIRS:
        x = _rows(3, 9 * 37, base).reshape(3, 9, 37).mul(2).round().div(2)
        for shape in shapes:
            yield x, _lanes(x, 2, dtype), _pair(), *shape
        yield x, _lanes(x, 3, dtype, both=False, radii=1), torch.tensor([1e-7, 0.2, 1.0]).double(), *shapes[0]
    x = _rows(0, 12, torch.float64).reshape(0, 3, 4)
    yield x, _lanes(x, 2, torch.float32), _pair(), [2, 2], [2, 2], [0, 0], [1, 1], [1, 2]


def relu_line_tensors(rows, units, outputs, dtype=torch.float32, classes=None, seed=0):
    """Inputs, weight and bias, and a second map; every third unit stands still and one column of another has a kink at 0."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, rows, units), (2, units, outputs), (2, outputs)]
    shapes += [(2, outputs, classes), (2, classes)] if classes is not None else []
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for weight in tensors[1::2]:  # results of the size of the inputs
        weight /= max(1, weight.shape[1]) ** 0.5
    tensors = [tensor.to(dtype) for tensor in tensors]
    tensors[0][1, :, ::3] = 0
    tensors[0][0, :, 1:2] = 0
    return [*tensors, None, None][:5]


def relu_line():
    """One map and two, both dtypes, widths of no multiple of a vector, more than a piece of points, repeated points, nothing."""
    several = [-1.0, -0.25, -0.25, 0.0, 0.1, 0.5, 2.0]
    for dtype in (torch.float32, torch.float64):
        inputs, weight, bias, head, head_bias = relu_line_tensors(11, 37, 19, dtype, 10)
        yield inputs, weight, bias, several, head, head_bias
        yield inputs, weight, bias, several, None, None
        yield inputs[:, :3], weight[:, :, :1], bias[:, :1], [0.5], None, None
    inputs, weight, bias, head, head_bias = relu_line_tensors(9, 130, 70, classes=33)
    yield inputs, weight, bias, torch.linspace(-2, 2, 131).tolist(), head, head_bias
    yield inputs, weight, bias, [], head, head_bias
    yield inputs[:, :0], weight, bias, several, None, None
    yield inputs[:, :, :0], weight[:, :0], bias, several, None, None


def _terms(dtype, columns=5000):
    """Three terms of two rows, with what is no number in the second."""
    terms = [_rows(count, columns, dtype)[:2] for count in (2, 3, 4)]
    terms[0][1, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    terms[2][0, ::7] *= 1e-3
    return terms


def _units(limbs):
    """Of parts that end at 7, 7, 3001 and the last column; one whose integers are halves."""
    coarse = torch.tensor([[-56, -56, -57, 1], [-58, -56, -56, -3]])
    return torch.stack([coarse - 40 * limb for limb in range(limbs)])


def row_largest():
    """Both dtypes, an empty part, no row."""
    for dtype in (torch.float32, torch.float64):
        yield _terms(dtype), [7, 7, 3001, 5000]
        yield _terms(dtype, 20_001), [1, 20_001]
    yield [_rows(1, 9, torch.float32)[:0]], [4, 9]


def fixed_point_sum():
    """Both dtypes, one limb and two, columns that cut parts, none, and the ends of the range of float64."""
    weights = torch.tensor([0.3, 1.0, 0.125], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        for limbs in (1, 2):
            yield _terms(dtype), weights, _units(limbs), [7, 7, 3001, 5000], 0, 5000
            yield _terms(dtype), weights, _units(limbs), [7, 7, 3001, 5000], 5, 3333
    yield _terms(dtype), weights, _units(2), [7, 7, 3001, 5000], 5000, 0
    halves = [torch.arange(-9.0, 9.0, dtype=torch.float64)[None] * scale for scale in (0.5, 2.0**40 + 0.5, 2.0**51 + 0.5)]
    yield halves, torch.ones(3, dtype=torch.float64), torch.tensor([[[0]], [[-30]]]), [18], 0, 18
    tiny = [torch.full((1, 5), 5e-324, dtype=torch.float64), torch.full((1, 5), 3e-310, dtype=torch.float64)]
    yield tiny, weights[1:], torch.tensor([[[-1074]], [[-1074]]]), [5], 0, 5
    yield [torch.full((1, 5), -1.5e308, dtype=torch.float64)], weights[:1], torch.tensor([[[964]], [[904]]]), [5], 0, 5


def fixed_point_value():
    """Integers of every size, one limb and two, both dtypes."""
    draw = torch.Generator().manual_seed(0)
    whole = torch.randint(-(2**62), 2**62, (2, 2, 3333), generator=draw) >> torch.randint(0, 62, (2, 2, 3333), generator=draw)
    for dtype in (torch.float32, torch.float64):
        for limbs in (1, 2):
            yield whole[:limbs], _units(limbs), [7, 7, 3001, 5000], 5, dtype
    yield whole[:1, :, :0], _units(1), [7, 7, 3001, 5000], 9, dtype


SAMPLES = {
    "affine_difference": affine_difference,
    "block_gram": block_gram,
    "block_update": block_update,
    "cross_entropy_difference": cross_entropy_difference,
    "direction": direction,
    "direction_dot": direction_dot,
    "direction_norms": direction_norms,
    "fixed_point_sum": fixed_point_sum,
    "fixed_point_value": fixed_point_value,
    "layer_norm_difference": layer_norm_difference,
    "linear_difference": linear_difference,
    "max_pool2d_difference": max_pool2d_difference,
    "perturb": perturb,
    "perturbed_linear": perturbed_linear,
    "pointwise_difference": pointwise_difference,
    "relu_line": relu_line,
    "row_largest": row_largest,
    "softmax_difference": softmax_difference,
}


def large(name):
    """Enough elements for the thread pool to cut, in one call per op."""
    ids, sizes = torch.tensor([1, 2]), [400_003, 70_001]
    weights = [torch.linspace(-1, 1, size) for size in sizes]
    x, scales = _rows(3, 128, torch.float32)[None], torch.ones(1, dtype=torch.float64)
    logits = _rows(3000, 16, torch.float32)
    step = _lanes(logits, 2, torch.float32, radii=1)
    planes = logits.reshape(120, 20, 20)
    pool = ([2, 2], [2, 2], [0, 0], [1, 1], [10, 10])
    return {
        "affine_difference": (*lanes((5, 3, 7001)), _radii(), torch.ones(3), _rows(2, 3, torch.float32), None),
        "cross_entropy_difference": (logits, step, _pair(), torch.arange(3000) % 16),
        "layer_norm_difference": (logits, step, _pair(), None, None, None, 1e-5, True),
        "max_pool2d_difference": (planes, step.reshape(2, 2, 1, *planes.shape), _pair(), *pool),
        "softmax_difference": (logits, step, _pair()),
        "block_gram": (_rows(3, 200_003, torch.float32), _rows(2, 200_003, torch.float32)),
        "block_update": (_rows(2, 200_003, torch.float32), _rows(3, 200_003, torch.float32), _rows(3, 2, torch.float64)),
        "direction": (ids, 3, [1, 2], sizes, "gaussian"),
        "direction_norms": (ids, 3, [1, 2], sizes, [1, 1], "gaussian"),
        "direction_dot": (weights, ids, 3, [1, 2], [1, 1], "gaussian"),
        "fixed_point_sum": (_terms(torch.float32, 200_003), torch.ones(3).double(), _units(1), [7, 7, 3001, 200_003], 3, 200_000),
        "fixed_point_value": (
            _rows(2, 200_003, torch.float64)[None].mul(2.0**50).long(),
            _units(1),
            [7, 7, 3001, 200_003],
            0,
            x.dtype,
        ),
        "row_largest": (_terms(torch.float32, 200_003), [7, 7, 3001, 200_003]),
        "linear_difference": (
            x[0],
            _rows(18, 128, torch.float32).reshape(1, 2, 3, 3, 128),
            torch.tensor([0.0, 1e-3, 0.3], dtype=torch.float64),
            _rows(999, 128, torch.float32),
            _rows(999, 128, torch.float32)[None],
            None,
        ),
        "perturb": (weights, ids, 3, [1], torch.ones(1, 2).double(), [1, 1], [0.1, -0.1], torch.float32, "gaussian"),
        "perturbed_linear": (x, _rows(999, 128, torch.float32), 7, 3, [0], scales, torch.ones(1, 3), "gaussian"),
        "pointwise_difference": (*lanes((5, 21_003)), _radii(), "gelu", []),
        "relu_line": (*(line := relu_line_tensors(1003, 40, 36, classes=10))[:3], [-1.0, 0.0, 0.7], *line[3:]),
    }[name]


def flat(value):
    """The tensors in nested lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in flat(item)] if isinstance(value, (list, tuple)) else []
