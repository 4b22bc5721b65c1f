"""Models as people build them: mixtures of experts, parts that are compiled, weights that are offloaded."""

import pytest
import torch
from conftest import process_state
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.zoo import digits

transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(24).reshape(2, 12) % 31


def mixture(kind):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 32,
        "max_position_embeddings": 16,
        "use_cache": False,
        "num_experts_per_tok": 2,
    }
    if kind == "mixtral":
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_local_experts=4)).eval()
    more = {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes, **more)).eval()


def own(model, batch):
    return model(input_ids=batch, labels=batch).loss


@pytest.mark.parametrize("kind", ["mixtral", "qwen3"])
def test_a_mixture_of_experts_has_the_responses_of_a_loop_in_float64(kind, untouched):
    model = mixture(kind)
    kernels = model.config._experts_implementation
    objective = fs.Objective(model, [TOKENS], loss=own)
    directions, radii = fs.Directions(objective, count=2), [1e-1, 3e-1]
    with untouched(model):
        found = fs.responses(objective, directions, radii, precision="float64").even
    assert model.config._experts_implementation == kernels
    plain = mixture(kind).double()
    plain.set_experts_implementation("eager")
    held, rows = dict(plain.named_parameters()), []
    with torch.no_grad():
        base, rest = own(plain, TOKENS).item(), {name: tensor.clone() for name, tensor in held.items()}
        for radius in radii:
            rows.append([])
            for index in range(2):
                values = []
                for sign in (1, -1):
                    for name, part in directions[index].items():
                        held[name].copy_(rest[name] + sign * radius * part)
                    values.append(own(plain, TOKENS).item())
                rows[-1].append(sum(values) - 2 * base)
    torch.testing.assert_close(
        torch.as_tensor(found), torch.tensor(rows, dtype=torch.float64), rtol=0, atol=5e-6
    )  # its norms round to float32


def test_products_of_a_mixture_of_experts_are_those_of_autograd():
    objective = fs.Objective(mixture("mixtral"), [TOKENS], loss=own, params="*experts*", dtype=torch.float64)
    plain = mixture("mixtral").double()
    plain.set_experts_implementation("eager")
    held = [dict(plain.named_parameters())[name] for name in objective.names]
    vectors = torch.randn(objective.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = [part.view_as(tensor) for part, tensor in zip(vectors.split([t.numel() for t in held]), held, strict=True)]
    slope = torch.autograd.grad(own(plain, TOKENS), held, create_graph=True)
    product = torch.autograd.grad(slope, held, parts)
    torch.testing.assert_close(fs.hessian(objective) @ vectors, torch.cat([part.flatten() for part in product]))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 8), nn.Tanh()), nn.Linear(8, 10))


def test_a_compiled_part_changes_neither_names_nor_directions_nor_numbers(untouched):
    plain, model = (fs.Objective(net(), digits(samples=8), criterion=F.cross_entropy), net())
    compiled = torch.compile(model[1], backend="eager")
    model[1] = compiled
    objective = fs.Objective(model, digits(samples=8), criterion=F.cross_entropy)
    assert objective.names == plain.names
    with untouched(model):
        settings = {"precision": "float64"}
        found = [fs.responses(each, fs.Directions(each, count=2), [1e-2], **settings).even for each in (objective, plain)]
    assert (found[0] == found[1]).all()
    assert model[1] is compiled
    with torch.no_grad():  # an objective follows a model that is being trained
        model[1]._orig_mod[0].weight.mul_(2)
        model[2].bias.add_(1)
        plain.model[1][0].weight.mul_(2)
        plain.model[2].bias.add_(1)
    assert objective.loss() == plain.loss()


def test_offloaded_weights_are_refused_with_the_call_that_brings_them_back(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    before = process_state()
    model = net()
    expected = fs.Objective(model, digits(samples=8), criterion=F.cross_entropy).loss()
    accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"on the meta device; accelerate has offloaded it: .*remove_hook_from_submodules\(model\)"
    ):
        fs.Objective(model, digits(samples=8), criterion=F.cross_entropy)
    accelerate.hooks.remove_hook_from_submodules(model)
    assert fs.Objective(model, digits(samples=8), criterion=F.cross_entropy).loss() == expected
    assert process_state() == before
