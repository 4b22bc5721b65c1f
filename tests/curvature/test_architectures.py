"""Exact products of common architectures agree with differences of their float64 gradients, and are symmetric."""

import pytest
import torch
from curvature_dense import relative
from differences.architectures import ARCHITECTURES

import fastscape as fs
from fastscape import zoo

COMMON = (
    "vision_transformer",
    "encoder_post_norm",
    "encoder_pre_norm_masked",
    "encoder_causal",
    "bert_sdpa",
    "gpt2_sdpa",
    "gru",
    "lstm",
    "batch_norm_batch",
    "rms_norm_swiglu",
    "zoo_cnn",
)
# torch's fused weight norm has a wrong double backward (test_choice.py); a padding row has no gradient, and differences move it;
# the gradients of swin_v2 are too rough for differences, and the custom function's are those of no scalar
OTHERWISE = {"weight_norm", "weight_norm_convolution", "tied_embedding", "swin_v2", "custom_function"}


def multiplied(name, path=None):
    """The Hessian of an architecture by a path, and by differences of gradients; two vectors, and their products by both."""
    model, data, options = zoo_cnn() if name == "zoo_cnn" else ARCHITECTURES[name]()
    if name.startswith("bert"):
        data = [_without_padding(batch) for batch in data]
    made = fs.Objective(model.double(), _double(data), **_loss(options))
    exact, differences = fs.hessian(made, method=path), fs.hessian(made, method="gradient difference")
    block = torch.randn(made.size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return exact, differences, block, exact @ block, differences @ block


def is_exact(operator):
    """Whether products are by derivatives, unless torch has none and says so."""
    lacking = ("no second derivative", "custom", "support", "out of bounds")
    return operator.choice.name != "gradient difference" or any(word in operator.choice.refused["graph"] for word in lacking)


def asymmetry(block, products):
    """|u'Hv - v'Hu|, and the size of either and of what they are summed from."""
    pair = float(block[:, 0] @ products[:, 1]), float(block[:, 1] @ products[:, 0])
    return abs(pair[0] - pair[1]), abs(pair[1]), float(products.norm() * block.norm())


def zoo_cnn():
    torch.manual_seed(0)
    return zoo.cnn(width=4), [(torch.randn(4, 1, 8, 8), torch.randint(10, (4,)))], {}


def _without_padding(batch):
    """Token 0 is padding, whose embedding has no gradient by definition; differences move it all the same."""
    if isinstance(batch, dict):
        return {key: value.clamp(min=1) if key == "input_ids" else value for key, value in batch.items()}
    return type(batch)(_without_padding(item) if isinstance(item, dict) else item for item in batch)


def _double(data):
    def cast(value):
        if isinstance(value, torch.Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, dict):
            return {key: cast(item) for key, item in value.items()}
        return type(value)(cast(item) for item in value)

    return [cast(batch) for batch in data]


def _loss(options):
    named = {"loss", "criterion"} & options.keys()
    return options if named else {**options, "criterion": torch.nn.functional.cross_entropy}


@pytest.mark.parametrize("name", COMMON)
def test_products_of_common_architectures(name):
    exact, differences, block, found, truth = multiplied(name)
    assert is_exact(exact)
    assert relative(found, truth) < max(1e-5, 20 * differences.choice.error)
    apart, size, terms = asymmetry(block, found)
    assert apart <= max(max(1e-6, 20 * exact.choice.error) * size, 1e-10 * terms)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(COMMON) - OTHERWISE))
def test_products_of_every_architecture(name):
    exact, differences, block, found, truth = multiplied(name)
    assert is_exact(exact)
    assert relative(found, truth) < max(1e-5, 20 * differences.choice.error)
    apart, size, terms = asymmetry(block, found)
    assert apart <= max(max(1e-6, 20 * exact.choice.error) * size, 1e-10 * terms)


@pytest.mark.parametrize("path", ["graph, batched", "forward", "reverse"])
@pytest.mark.parametrize("name", ["encoder_causal", "gpt2_sdpa", "zoo_cnn"])
def test_paths_agree_on_attention_and_convolutions(name, path):
    exact, differences, block, found, truth = multiplied(name, path)
    assert is_exact(exact)
    assert relative(found, truth) < max(1e-5, 20 * differences.choice.error)
    apart, size, terms = asymmetry(block, found)
    assert apart <= max(max(1e-6, 20 * exact.choice.error) * size, 1e-10 * terms)
