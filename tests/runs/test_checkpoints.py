"""Checkpoints are read in the usual forms, matched to the model, and never run code."""

import contextlib
import pickle
import random
import warnings

import pytest
import torch
from conftest import TiedModel
from safetensors.torch import save_file
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.runs.checkpoints import checkpoints, read_state


class Evil:
    def __reduce__(self):
        return print, ("ran",)


@pytest.fixture
def state(bn_net):
    return {name: tensor + 1 for name, tensor in bn_net.state_dict().items()}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_torch_files_are_unwrapped_and_prefixes_taken_off(tmp_path, bn_objective, state, wrapper, prefix):
    content = {prefix + name: tensor for name, tensor in state.items()}
    torch.save(content if wrapper is None else {wrapper: content, "epoch": 3, "lr": 0.1}, tmp_path / "step12.pt")
    (checkpoint,) = checkpoints([tmp_path / "step12.pt"])
    assert (checkpoint.name, checkpoint.step) == ("step12", 12)
    assert checkpoint.at(bn_objective).loss() == bn_objective.at(state).loss()


def test_safetensors_are_read_and_shared_tensors_completed(tmp_path):
    model = TiedModel()
    save_file({"head.weight": torch.ones(5, 3)}, tmp_path / "a.safetensors")
    objective = fs.Objective(model, [(torch.tensor([1]), torch.tensor([2]))], criterion=F.cross_entropy)
    assert checkpoints([tmp_path / "a.safetensors"])[0].at(objective).loss() == pytest.approx(torch.log(torch.tensor(5.0)))


def test_files_that_could_run_code_are_refused(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"model": Evil()}, tmp_path / "object.pt")
    for name in ("evil.pt", "object.pt"):
        with pytest.raises(ValueError, match="must hold tensors only, got a pickle that could run code"):
            read_state(tmp_path / name)


def test_damaged_and_foreign_files_are_named(tmp_path, bn_objective, state):
    torch.save(state, tmp_path / "whole.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:500])
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for name in ("torn.pt", "torn.safetensors"):
        with pytest.raises(ValueError, match=f"checkpoint .*{name}"):
            read_state(tmp_path / name)
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="must hold a state dict, alone or under one of.*got keys epoch"):
        read_state(tmp_path / "empty.pt")
    del state["5.weight"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"checkpoint .*less.pt: state must match Sequential, got: missing 5.weight"):
        checkpoints([tmp_path / "less.pt"])[0].at(bn_objective)


def test_bad_lists_are_named(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"")
    for paths, message in (
        ([], "at least one file"),
        ([tmp_path / "none.pt"], r"checkpoints\[0\] must be a file"),
        ([tmp_path / "a.pt", tmp_path / "." / "a.pt"], r"checkpoints\[1\] is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoints(paths)


def test_equal_stems_get_longer_names(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        zoo.train(zoo.mlp(hidden=(4,)), zoo.digits(samples=8), tmp_path / folder, steps=1, checkpoints=2)
    names = [file.name for file in checkpoints([tmp_path / "x" / "step0.safetensors", tmp_path / "y" / "step0.safetensors"])]
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("stem", "step"),
    [
        ("step12", 12),
        ("epoch-3-acc0.95", 3),
        ("resnet18", None),
        ("0400", 400),
        ("step100_v2", 100),
        ("checkpoint_7", 7),
        ("final", None),
    ],
)
def test_steps_are_read_from_words_that_mean_them(tmp_path, stem, step):
    (tmp_path / f"{stem}.pt").write_bytes(b"")
    assert checkpoints(tmp_path / f"{stem}.pt")[0].step == step


def test_every_damaged_byte_is_a_value_error(tmp_path, state):
    rng = random.Random(0)
    for suffix, save in ((".pt", torch.save), (".safetensors", lambda content, path: save_file(content, path))):
        path = tmp_path / f"whole{suffix}"
        save(state, path)
        whole = path.read_bytes()
        for _ in range(30):
            damaged = bytearray(whole)
            for _ in range(rng.choice([1, 20])):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(bytes(damaged[: rng.choice([len(whole), rng.randrange(len(whole))])]))
            with contextlib.suppress(ValueError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_state(path)


def test_values_beside_a_flat_state_dict_are_left_out(tmp_path, bn_objective, state):
    torch.save(state | {"epoch": 3}, tmp_path / "flat.pt")
    assert checkpoints([tmp_path / "flat.pt"])[0].at(bn_objective).loss() == bn_objective.at(state).loss()
