"""Sharded models in a group of one process; groups of several are in tests/distributed."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.objective.sharding import ShardedModelError, sharding_of


@pytest.fixture
def alone():
    """A group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


DATA = [(torch.linspace(-1, 1, 24).reshape(4, 6), torch.tensor([0, 1, 2, 0])), (torch.ones(1, 6), torch.tensor([2]))]


def test_plain_models_are_not_sharded():
    assert sharding_of(network()) is None
    assert fs.Objective(network(), DATA, criterion=F.cross_entropy).sharding is None


def test_one_process_gives_the_bits_of_the_loop(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain = fs.Objective(network(), DATA, criterion=F.cross_entropy)
    cut = fs.Objective(fully_shard(network(), mesh=init_device_mesh("cpu", (1,))), DATA, criterion=F.cross_entropy)
    losses = [
        fs.losses(each, fs.Directions(each, 2), [0.0, 0.1, -0.1], precision="float32", method="loop") for each in (plain, cut)
    ]
    assert torch.equal(*losses)
    assert cut.weight_fingerprint() == plain.weight_fingerprint()


def test_weights_are_read_as_the_user_has_them_while_others_are_in_their_place(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    cut = fs.Objective(fully_shard(network(), mesh=init_device_mesh("cpu", (1,))), DATA, criterion=F.cross_entropy)
    norm, fingerprint = cut.norm, cut.weight_fingerprint()
    with cut.held(), torch.no_grad():
        replica = cut.replica(cut.dtype)
        for slot in replica.scratch:
            slot.mul_(2)
        assert cut.norm == norm
        for slot in replica.scratch:
            slot.mul_(2)
        assert cut.weight_fingerprint() == fingerprint
        for slot in replica.scratch:
            slot.mul_(2)
    assert cut.norm == norm


def test_the_weights_are_not_written_into_but_where_they_come_back(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    cut = fs.Objective(fully_shard(network(), mesh=init_device_mesh("cpu", (1,))), DATA, criterion=F.cross_entropy)
    with pytest.raises(ShardedModelError, match="must hold whole weights"):
        cut.replica(cut.dtype)


class FullyShardedDataParallel(nn.Sequential):
    """Named as torch's first sharding."""


def test_the_first_fsdp_is_refused_by_name():
    with pytest.raises(TypeError, match=r"got FullyShardedDataParallel in the root.*fully_shard"):
        fs.Objective(FullyShardedDataParallel(nn.Linear(6, 3)), DATA, criterion=F.cross_entropy)
