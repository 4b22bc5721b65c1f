"""Dense float64 Hessians and Gauss-Newton matrices by other means than the operators under test."""

import torch
from torch.func import functional_call, jacrev
from torch.nn import functional as F

import fastscape as fs


def split(model, vector, names=None):
    """A flat vector as named tensors of the model's (selected) parameters."""
    parameters = {name: tensor for name, tensor in model.named_parameters() if names is None or name in names}
    sizes = [tensor.numel() for tensor in parameters.values()]
    return {name: part.view_as(tensor) for (name, tensor), part in zip(parameters.items(), vector.split(sizes), strict=True)}


def flat(model, names=None):
    """The (selected) parameters as one vector."""
    return torch.cat([tensor.detach().flatten() for name, tensor in model.named_parameters() if names is None or name in names])


def dense_hessian(model, loss, names=None):
    """Hessian of ``loss(model outputs function)`` by double reverse mode over the flat vector, ``[D, D]``."""
    return torch.autograd.functional.hessian(
        lambda vector: loss(lambda inputs: functional_call(model, split(model, vector, names), (inputs,))), flat(model, names)
    )


def dense_ggn(model, inputs, output_hessian):
    """J' H J of flattened outputs, with the Hessian of the loss in them."""
    vector = flat(model)
    jacobian = jacrev(lambda v: functional_call(model, split(model, v), (inputs,)).flatten())(vector).detach()
    return jacobian.T @ output_hessian @ jacobian


def identity(operator):
    """The identity, in the operator's dtype."""
    return torch.eye(operator.shape[0], dtype=operator.dtype)


def objective(model, *batches, criterion=F.cross_entropy, **options):
    return fs.Objective(model, list(batches), criterion=criterion, **options)


def relative(found, expected):
    """Norm of the difference relative to that of ``expected``."""
    return float((found - expected).norm() / expected.norm())
