"""A training run of a study: reproducible, with its early state and outcome."""

import dataclasses
from functools import partial

import pytest
import torch
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.study.plan import full, quick, slug
from fastscape.study.training import build, train

MLP = dataclasses.replace(quick().architectures[0], steps=40, train=partial(zoo.digits, samples=256))


def trained(tmp_path, seed=0):
    model = build(MLP, seed)
    objective = fs.Objective(model, MLP.probed(), criterion=F.cross_entropy)
    return train(MLP, model, objective, tmp_path, seed=seed, early=0.1), objective


def test_a_seed_gives_the_same_run_and_another_seed_another(tmp_path, untouched):
    with untouched(zoo.mlp(hidden=(2,))):
        first, again, other = (trained(tmp_path, seed)[0] for seed in (0, 0, 1))
    assert first.losses == again.losses
    assert all(torch.equal(first.final[name], again.final[name]) for name in first.final)
    assert first.losses != other.losses


def test_states_and_outcome_are_those_of_the_run(tmp_path):
    run, objective = trained(tmp_path)
    assert run.early_step == 4
    assert objective.at(run.final).loss() == objective.loss()
    assert objective.at(run.start).loss() > objective.at(run.early).loss() > objective.loss()
    assert run.outcome.descent == pytest.approx(objective.at(run.start).loss() - objective.loss())
    assert 0 < run.outcome.halved <= 1
    assert run.outcome.test_accuracy > 0.5


def test_plans_name_their_architectures_and_share_them():
    assert [slug(each) for each in quick().architectures] == ["mlp", "resnet-18", "tiny-transformer"]
    assert [each.name for each in quick().only(("tiny-transformer", "mlp")).architectures] == ["MLP", "Tiny Transformer"]


def test_the_full_study_takes_fashion_mnist_where_it_is(tmp_path):
    assert "digits" in full(root=tmp_path).architectures[0].words
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    assert "Fashion-MNIST" in full(root=tmp_path).architectures[0].words
    assert "784-128-10" in full(root=tmp_path).architectures[0].words
