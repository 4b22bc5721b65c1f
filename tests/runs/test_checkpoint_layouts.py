"""Checkpoints in the layouts that trainers leave: folders, several files, prefixes of wrappers, adapters."""

import itertools
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.runs.checkpoints import checkpoints, read_state
from fastscape.zoo import digits

transformers = pytest.importorskip("transformers")


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))


@pytest.fixture
def objective():
    torch.manual_seed(0)
    return fs.Objective(net(), digits(samples=8), criterion=F.cross_entropy)


@pytest.fixture
def state(objective):
    return {name: tensor + 0.1 for name, tensor in objective.model.state_dict().items()}


@pytest.fixture
def output(tmp_path, state):
    """What a trainer leaves after 10 of 10 steps, with checkpoints at 2 and 10."""
    for folder, step, shift in ((tmp_path / "checkpoint-10", 10, 1), (tmp_path / "checkpoint-2", 2, 0), (tmp_path, 10, 1)):
        folder.mkdir(exist_ok=True)
        save_file({name: tensor + shift for name, tensor in state.items()}, folder / "model.safetensors")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
        for beside in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_1.pth", "training_args.bin", "scaler.pt"):
            torch.save({"some": 1}, folder / beside)
        (folder / "config.json").write_text("{}")
    return tmp_path


def gpt():
    torch.manual_seed(1)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=32, n_positions=8, use_cache=False)
    return transformers.GPT2LMHeadModel(config).eval()


def test_a_folder_of_one_model_is_one_checkpoint(output, objective, state):
    (found,) = checkpoints([output / "checkpoint-2"])
    assert (found.name, found.step) == ("checkpoint-2", 2)
    assert found.at(objective).loss() == objective.at(state).loss()
    (by_file,) = checkpoints([output / "checkpoint-2" / "model.safetensors"])
    assert (by_file.name, by_file.step) == ("checkpoint-2", 2)


def test_a_folder_of_folders_is_a_trajectory_with_its_steps(output):
    assert [(found.name, found.step) for found in checkpoints([output])] == [("checkpoint-2", 2), ("checkpoint-10", 10)]
    (output / "trainer_state.json").write_text(json.dumps({"global_step": 12}))
    assert [found.step for found in checkpoints([output])] == [2, 10, 12]
    result = fs.trajectory(
        fs.Objective(net(), digits(samples=8), criterion=F.cross_entropy),
        [output],
        fs.ProbeSettings(count=2, banks=1, radii=(1e-3, 3e-3, 1e-2, 3e-2), precision="float64"),
    )
    assert [point.step for point in result.points] == [2, 10, 12]


def test_what_lies_beside_the_weights_is_no_checkpoint(output, objective):
    with pytest.raises(ValueError, match=r"checkpoints\[0\] must hold weights, got .*training_args.bin.*name the folder"):
        checkpoints([output / "training_args.bin"])
    (output / "empty").mkdir()
    torch.save({}, output / "empty" / "optimizer.bin")
    with pytest.raises(ValueError, match=r"checkpoints\[0\] must name a file or a directory.* it holds optimizer.bin"):
        checkpoints([output / "empty"])
    with pytest.raises(ValueError, match=r"b: must be one checkpoint, got .* with 2; name one of them"):
        fs.barrier(objective, None, output)


def test_weights_in_several_files_are_read_by_their_index(tmp_path):
    model = gpt()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="6KB")
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    assert len(set(json.loads(index.read_text())["weight_map"].values())) > 2
    batch = {"input_ids": torch.arange(8)[None], "labels": torch.arange(8)[None]}
    objective = fs.Objective(gpt(), [batch], loss=lambda model, batch: model(**batch).loss)
    moved = objective.at({name: tensor * 2 for name, tensor in model.state_dict().items()})
    for path in (tmp_path / "sharded", index):
        (found,) = checkpoints([path])
        assert found.name == "sharded"
        assert found.at(moved).loss() == objective.loss()


def test_an_index_that_leads_elsewhere_is_refused(tmp_path, state):
    save_file(state, tmp_path / "outside.safetensors")
    (tmp_path / "run").mkdir()
    index = tmp_path / "run" / "model.safetensors.index.json"
    for content, message in (
        ({"weight_map": {"a": "../outside.safetensors"}}, "parts must be files of weights beside the index"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "model-00001-of-00002.safetensors is missing"),
        ({"weight_map": {}}, "names none"),
        ({"other": 1}, "must be an index with a weight_map"),
        ([], "must be an index with a weight_map"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_state(tmp_path / "run")


def test_layouts_of_several_processes_are_refused_with_the_command_that_converts(tmp_path, state):
    from torch.distributed import checkpoint

    with pytest.warns(UserWarning, match="single process"):
        checkpoint.save(state, checkpoint_id=tmp_path / "dcp" / "step-5", no_dist=True)
    for path in (tmp_path / "dcp", tmp_path / "dcp" / "step-5"):
        with pytest.raises(ValueError, match=r"format_utils dcp_to_torch .*step-5 step-5.pt"):
            checkpoints([path])
    (tmp_path / "ds").mkdir()
    torch.save({}, tmp_path / "ds" / "mp_rank_00_model_states.pt")
    with pytest.raises(ValueError, match="of DeepSpeed; convert it with the zero_to_fp32.py"):
        checkpoints([tmp_path / "ds"])


@pytest.mark.parametrize(
    "prefix", ["".join(p) for n in (2, 3) for p in itertools.permutations(("_orig_mod.", "module.", "model.", "net."), n)]
)
def test_prefixes_compose_in_any_order(tmp_path, objective, state, prefix):
    save_file({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "a.safetensors")
    assert checkpoints([tmp_path / "a.safetensors"])[0].at(objective).loss() == objective.at(state).loss()


def test_parts_that_wrappers_put_into_names_are_left_out(tmp_path, objective, state):
    names = {"1": "_fsdp_wrapped_module.1._checkpoint_wrapped_module", "3": "3._orig_mod"}
    save_file({f"{names[name[0]]}{name[1:]}": tensor for name, tensor in state.items()}, tmp_path / "a.safetensors")
    assert checkpoints([tmp_path / "a.safetensors"])[0].at(objective).loss() == objective.at(state).loss()


def test_a_wrapped_model_takes_the_checkpoint_of_the_plain_one(tmp_path, state):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x)

    save_file(state, tmp_path / "a.safetensors")
    wrapped = fs.Objective(Wrapped(), digits(samples=8), criterion=F.cross_entropy)
    plain = fs.Objective(net(), digits(samples=8), criterion=F.cross_entropy).at(state)
    assert checkpoints([tmp_path / "a.safetensors"])[0].at(wrapped).loss() == plain.loss()


def test_a_model_with_a_head_takes_the_checkpoint_of_its_base(tmp_path):
    model = gpt()
    save_file({name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}, tmp_path / "base.safetensors")
    objective = fs.Objective(gpt(), [torch.arange(8)[None]], loss=lambda model, batch: model(batch, labels=batch).loss)
    moved = objective.at({name: tensor * 2 for name, tensor in model.state_dict().items()})
    assert checkpoints([tmp_path / "base.safetensors"])[0].at(moved).loss() == objective.loss()


class Adapted(nn.Module):
    """A layer with adapters under PEFT's names."""

    def __init__(self, *adapters):
        super().__init__()
        self.base_layer = nn.Linear(64, 10)
        self.lora_A = nn.ModuleDict({name: nn.Linear(64, 2, bias=False) for name in adapters})
        self.lora_B = nn.ModuleDict({name: nn.Linear(2, 10, bias=False) for name in adapters})

    def forward(self, x):
        x = x.flatten(1)
        return self.base_layer(x) + sum(self.lora_B[name](self.lora_A[name](x)) for name in self.lora_A)


def test_adapters_move_and_the_weights_below_stay(tmp_path):
    torch.manual_seed(0)
    model = Adapted("default")
    moved = {name: tensor + 1 for name, tensor in model.state_dict().items() if "lora" in name}
    (tmp_path / "checkpoint-3").mkdir()
    saved = {"base_model.model." + name.replace(".default", ""): tensor for name, tensor in moved.items()}
    save_file(saved, tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    objective = fs.Objective(model, digits(samples=8), criterion=F.cross_entropy)
    (found,) = checkpoints([tmp_path])
    assert found.at(objective).loss() == objective.at(model.state_dict() | moved).loss()
    two = fs.Objective(Adapted("one", "two"), digits(samples=8), criterion=F.cross_entropy)
    with pytest.raises(ValueError, match="unexpected"):  # whose weights they are is not said
        found.at(two)


def test_the_optimizers_state_is_found_in_the_folder(tmp_path, objective):
    model, folder = objective.model, tmp_path / "checkpoint-1"
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.25, momentum=0.9)
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    for path in (folder, folder / "model.safetensors"):
        found = checkpoints([path])[0].optimizer()
        assert found is not None
        assert found.groups[0]["lr"] == 0.25
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize(("stem", "step"), [("epoch=3-step=400", 400), ("last", None), ("epoch_2", 2), ("global_step128", 128)])
def test_a_step_is_told_from_an_epoch(tmp_path, stem, step):
    (tmp_path / f"{stem}.ckpt").write_bytes(b"")
    assert checkpoints([tmp_path / f"{stem}.ckpt"])[0].step == step
