"""Models that transformers and timm made, by their names on a command line, and what the criterion takes of what they return."""

import json
import re

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

import fastscape as fs
from fastscape.cli import main
from fastscape.zoo import specs

transformers = pytest.importorskip("transformers")

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
TOKENS = torch.arange(16).reshape(2, 8)
DATA = """
import torch

def make():
    tokens = torch.arange(16).reshape(2, 8)
    return [{"input_ids": tokens, "labels": tokens}]

def pairs():
    tokens = torch.arange(16).reshape(2, 8)
    return [({"input_ids": tokens}, tokens)]

def logits(out):
    return out.logits.movedim(-1, 1)
"""


def gpt():
    torch.manual_seed(3)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, use_cache=False)).eval()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "batches.py").write_text(DATA)
    gpt().save_pretrained(tmp_path / "gpt")
    return tmp_path


def build(spec):
    return specs.build(spec, "MODEL", specs.MODELS)


def test_a_saved_model_of_transformers_is_read_with_its_weights_and_dtype(folder):
    built = build(f"hf:{folder}/gpt")
    assert all(torch.equal(a, b) for a, b in zip(built.state_dict().values(), gpt().state_dict().values(), strict=True))
    gpt().bfloat16().save_pretrained(folder / "half", max_shard_size="6KB")
    assert build(f"hf:{folder}/half").dtype == torch.bfloat16
    assert build(f"hf:{folder}/half?dtype=float32").dtype == torch.float32


def test_a_configuration_alone_has_random_weights_that_are_the_same_every_time(folder):
    spec = f"hf:{folder}/gpt/config.json"
    one, two, other = build(spec), build(spec), build(f"{spec}?n_layer=2")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert len(other.transformer.h) == 2


def test_what_is_not_there_is_named_with_what_was_found(folder):
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_text("")
    (folder / "bare").mkdir()
    (folder / "bare" / "config.json").write_text((folder / "gpt" / "config.json").read_text())
    unknown = json.loads((folder / "gpt" / "config.json").read_text()) | {"architectures": None}
    (folder / "unknown.json").write_text(json.dumps(unknown))
    for spec, message in (
        ("hf:openai-community/gpt2", "must name a folder with config.json.*no such folder; download a model of the hub first"),
        (f"hf:{folder}/empty", "got .*: notes.txt; download"),
        (f"hf:{folder}/bare", r"must name a folder with weights \(model.safetensors.*with config.json; name .* for random ones"),
        (f"hf:{folder}/unknown.json", r"must be of a class of transformers, got None in .*\?architecture=GPT2LMHeadModel"),
    ):
        with pytest.raises(ValueError, match=message):
            build(spec)
    assert type(build(f"hf:{folder}/unknown.json?architecture=GPT2Model")).__name__ == "GPT2Model"


def test_models_of_timm_by_name():
    pytest.importorskip("timm")
    built = build("timm:test_vit?num_classes=10&img_size=32")
    assert built(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(ValueError, match="must name a model of timm, got 'timm:resnet19'; there is resnet18"):
        build("timm:resnet19")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_the_command_takes_the_models_own_loss_of_batches_with_labels(folder):
    options = ("--data", f"{folder}/batches.py:make", "--count", 2, "--banks", 1, "--radii", "1e-3:1e-1:4", "--json")
    done = run("multifractal", f"hf:{folder}/gpt", *options)
    assert done.exit_code == 0, done.stderr
    own = gpt()(input_ids=TOKENS, labels=TOKENS).loss.item()
    assert json.loads(done.stdout)["loss"] == pytest.approx(own, rel=1e-5)


def test_the_criterion_takes_a_part_of_what_a_model_returns(folder):
    pairs = [({"input_ids": TOKENS}, TOKENS)]

    def logits(out):
        return out.logits.movedim(-1, 1)

    objective = fs.Objective(gpt(), pairs, criterion=F.cross_entropy, output=logits)
    expected = F.cross_entropy(gpt()(TOKENS).logits.flatten(0, 1), TOKENS.flatten()).item()
    assert objective.loss() == pytest.approx(expected, rel=1e-6)
    assert 0 <= objective.accuracy() <= 1
    by_hand = fs.Objective(
        gpt(), pairs, loss=lambda model, batch: F.cross_entropy(logits(model(**batch[0])), batch[1]), dtype=torch.float64
    )
    v = torch.randn(objective.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = fs.Objective(gpt(), pairs, criterion=F.cross_entropy, output=logits, dtype=torch.float64)
    torch.testing.assert_close(fs.hessian(wide) @ v, fs.hessian(by_hand) @ v)
    assert (fs.ggn(wide) @ v) @ v > 0  # of the logits, which a loss= does not tell


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (None, TypeError, "pass output='logits', or a function"),
        ("logits", RuntimeError, r"add .movedim\(-1, 1\) in output="),
        ("scores", ValueError, "output must name what the model returns, got 'scores' of CausalLM.* with logits"),
        (3, TypeError, "output must be a name, or a function of what the model returns, got 3"),
        (lambda out: out.nothing, AttributeError, "raised by output= on what the model returned"),
    ],
)
def test_an_output_that_does_not_fit_is_told_with_the_remedy(output, error, message):
    with pytest.raises(error) as raised:
        fs.Objective(gpt(), [({"input_ids": TOKENS}, TOKENS)], criterion=F.cross_entropy, output=output).loss()
    words = "\n".join((str(raised.value), *getattr(raised.value, "__notes__", ())))
    assert re.search(message, words)


def test_an_output_belongs_to_a_criterion():
    with pytest.raises(ValueError, match="output must be None with loss="):
        fs.Objective(gpt(), [TOKENS], loss=lambda model, batch: model(batch, labels=batch).loss, output="logits")
