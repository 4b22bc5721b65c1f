"""Small networks with batch norm whose running statistics are not those of the data, and their losses written out."""

import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs


def data(seed=1, count=24, size=12):
    generator = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.randn(count, 4, generator=generator, dtype=torch.float64) + 1
    targets = torch.randint(3, (count,), generator=generator)
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def net(kind=nn.BatchNorm1d):
    """Evaluation mode, statistics at 0 and 1: early in training."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), kind(5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


def objective(model=None, batches=None, **arguments):
    return fs.Objective(net() if model is None else model, batches or data(), criterion=F.cross_entropy, **arguments)


def written_out(model, batches, mode):
    """The mean loss as a function of the flat parameters, batch norm by hand: biased variances of each batch, or the buffers."""
    named = {name: tensor.detach() for name, tensor in model.named_parameters()}
    mean, var, eps = model[1].running_mean.clone(), model[1].running_var.clone(), model[1].eps

    def loss(flat):
        parts = dict(zip(named, flat.split([tensor.numel() for tensor in named.values()]), strict=True))
        w = {name: part.view_as(named[name]) for name, part in parts.items()}
        total, terms = 0.0, 0
        for inputs, targets in batches:
            hidden = inputs @ w["0.weight"].T + w["0.bias"]
            mu, square = (hidden.mean(0), hidden.var(0, unbiased=False)) if mode == "batch" else (mean, var)
            hidden = torch.tanh((hidden - mu) / (square + eps).sqrt() * w["1.weight"] + w["1.bias"])
            logits = hidden @ w["3.weight"].T + w["3.bias"]
            total = total + len(targets) * (logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]).mean()
            terms += len(targets)
        return total / terms

    return loss, torch.cat([tensor.flatten() for tensor in named.values()])


def hessian(model, batches, mode):
    loss, flat = written_out(model, batches, mode)
    return torch.autograd.functional.hessian(loss, flat)


def top(model, batches, mode):
    return float(torch.linalg.eigvalsh(hessian(model, batches, mode))[-1])
