"""Triton kernels do not see how the memory of their arguments is laid out: on a chip, or interpreted."""

from importlib.util import find_spec

import pytest
import torch

if not find_spec("triton"):
    pytest.skip("triton is not installed", allow_module_level=True)

from ops.interpreter import DEVICE, bfloat16_as_on_chips  # noqa: F401
from ops.samples import SAMPLES, flat

from fastscape.ops._registry import OPERATORS

KERNELS = [name for name, op in OPERATORS.items() if "CUDA" in op.kernels and op.kernels["CUDA"].language == "Triton"]
SHORT = {"direction_dot", "direction_norms"}  # whose last sample is that of one direction: seconds, interpreted


def backwards(tensor):
    """The same numbers, the first axis the one that is adjacent in memory; of a vector every second place."""
    if tensor.ndim < 2:
        return torch.stack((tensor, tensor), -1)[..., 0]
    axes = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(axes).contiguous().permute(axes)


def laid_out(argument, layout):
    if isinstance(argument, torch.Tensor):
        return layout(argument.to(DEVICE))
    return [laid_out(each, layout) for each in argument] if isinstance(argument, list) else argument


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's, of samples that are not finite
@pytest.mark.parametrize("name", KERNELS)
def test_every_argument_may_be_laid_out_backwards(name):
    launch, arguments = OPERATORS[name].kernels["CUDA"].function, list(SAMPLES[name]())[-1 if name in SHORT else 0]
    expected = flat(launch(*laid_out(list(arguments), torch.Tensor.contiguous)))
    found = flat(launch(*laid_out(list(arguments), backwards)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.0, equal_nan=True)
