"""Every check of the doctor has a case for each severity that it can give; what a model raises is a finding."""

import json
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.evaluation.footprint import footprint
from fastscape.probes.doctor import machine as doctor_machine
from fastscape.probes.doctor.result import Diagnosis, Finding

INPUTS = torch.linspace(-1, 1, 24).view(6, 4)
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *layers, nn.Tanh(), nn.Linear(5, 3))


def objective(model, data=None, **settings):
    settings = settings if {"loss", "criterion"} & set(settings) else {"criterion": F.cross_entropy} | settings
    return fs.Objective(model, data or [(INPUTS, TARGETS)], **settings)


class Wrapped(nn.Module):
    """A network whose outputs go through a function."""

    def __init__(self, function, model=None):
        super().__init__()
        self.model, self.function = model or net(), function

    def forward(self, x):
        return self.function(self.model(x))


# ---------------------------------------------------------------------- the machine


def test_a_machine_is_looked_at_without_a_model():
    found = fs.doctor()
    checks = ["native kernels", "accelerator", "threads", "extras", "arithmetic", "versions", "temporary files"]
    assert [finding.check for finding in found.findings] == checks
    assert found.name == "machine"
    assert found.model == ()


def machine(check):
    return next(finding for finding in doctor_machine.machine_findings() if finding.check == check)


def test_absent_kernels_are_a_warning_with_the_reason(monkeypatch):
    import dataclasses

    narrow = dataclasses.replace(fs.status(), native="baseline")
    monkeypatch.setattr(doctor_machine, "status", lambda: narrow)
    monkeypatch.setattr(doctor_machine, "_instructions", lambda: {"sse2"})
    assert machine("native kernels").severity == "ok"
    gone = dataclasses.replace(fs.status(), native="", native_reason="not compiled")
    monkeypatch.setattr(doctor_machine, "status", lambda: gone)
    assert machine("native kernels").severity == "warning"
    assert "not compiled" in machine("native kernels").found
    monkeypatch.setenv("FASTSCAPE_NATIVE", "0")
    assert machine("native kernels").remedy == "unset FASTSCAPE_NATIVE"


def test_a_narrow_instruction_set_on_a_wide_processor_is_a_warning(monkeypatch):
    import dataclasses

    narrow = dataclasses.replace(fs.status(), native="baseline")
    monkeypatch.setattr(doctor_machine, "status", lambda: narrow)
    monkeypatch.setattr(doctor_machine, "_instructions", lambda: {"avx2", "sse2"})
    assert machine("native kernels").severity == "warning"
    assert "avx2" in machine("native kernels").found
    monkeypatch.setattr(doctor_machine, "_instructions", lambda: {"sse2"})
    assert machine("native kernels").severity == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_a_driver_without_cuda_in_torch_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor_machine.shutil, "which", lambda _name: None)
    monkeypatch.setattr(doctor_machine.Path, "exists", lambda _self: False)
    assert machine("accelerator").severity == "ok"
    monkeypatch.setattr(doctor_machine.Path, "exists", lambda self: str(self) == "/dev/nvidia0")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in machine("accelerator").found
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert machine("accelerator").severity == "warning"
    assert "cannot use it" in machine("accelerator").found


@pytest.mark.parametrize(("share", "severity"), [(0.5, "warning"), (1.0, "ok"), (2.0, "ok"), (2.5, "warning")])
def test_threads_are_held_against_the_processors_that_may_be_used(monkeypatch, share, severity):
    """More threads than processors, or fewer than the physical half of them."""
    monkeypatch.setattr(doctor_machine, "cores", lambda: share * torch.get_num_threads())
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = machine("threads")
    assert found.severity == severity
    assert "OMP_NUM_THREADS=3" in found.found
    assert bool(found.remedy) == (severity == "warning")


def test_a_container_has_the_processors_of_its_quota(monkeypatch):
    monkeypatch.setattr(doctor_machine.Path, "read_text", lambda _self, **_named: "50000 100000\n")
    assert doctor_machine.cores() == 0.5
    monkeypatch.setattr(doctor_machine.Path, "read_text", lambda _self, **_named: "max 100000\n")
    assert doctor_machine.cores() >= 1


def test_missing_packages_are_named_with_what_they_are_for(monkeypatch):
    monkeypatch.setattr(doctor_machine, "EXTRAS", {"json": ("all", "x"), "no_such_module": ("figures", "report")})
    found = machine("extras")
    assert found.severity == "warning"
    assert "no_such_module is not installed (figures)" in found.found
    assert found.remedy == "pip install 'fastscape-probes[report]'"
    monkeypatch.setattr(doctor_machine, "EXTRAS", {"json": ("all", "x")})
    assert machine("extras").severity == "ok"


def test_reduced_precision_is_told_and_is_no_fault_because_probes_switch_it_off():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        found = machine("arithmetic")
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.severity == "ok"
    assert "probes switch it off" in found.found
    assert "'high'" in found.found


def test_flushed_denormals_are_a_warning():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        assert machine("arithmetic").severity == "warning"
    finally:
        torch.set_flush_denormal(False)
    assert machine("arithmetic").severity == "ok"


def test_a_torch_that_is_too_old_is_an_error(monkeypatch):
    assert machine("versions").severity == "ok"
    monkeypatch.setattr(doctor_machine, "_LEAST", (99, 0))
    assert machine("versions").severity == "error"
    assert fs.doctor().worst == "error"


def test_a_full_disk_is_a_warning(monkeypatch):
    def refuse(**_named):
        raise OSError(28, "No space left on device")

    assert machine("temporary files").severity == "ok"
    monkeypatch.setattr(doctor_machine.tempfile, "TemporaryFile", refuse)
    assert machine("temporary files").severity == "warning"
    assert "No space left" in machine("temporary files").found


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def fails():
        raise RuntimeError("odd machine")

    monkeypatch.setattr(doctor_machine, "status", fails)
    assert machine("native kernels").severity == "warning"
    assert "odd machine" in machine("native kernels").found


# ---------------------------------------------------------------------- a model


def test_a_sound_model_has_no_findings_but_ok():
    found = fs.doctor(objective(net()), name="sound")
    assert {finding.check: finding.found for finding in found.model if finding.severity != "ok"} == {}
    assert len(found.model) == 16
    assert found.meta["loss"] == pytest.approx(objective(net()).loss())
    assert "sound" in found.verdict()


def half():
    return objective(net().bfloat16())


def mixed():
    model = net()
    model[2].double()
    model.forward = None
    return objective(Mixed(model))


class Mixed(nn.Module):
    """Two layers of two dtypes."""

    def __init__(self, model):
        super().__init__()
        self.first, self.last = model[0], model[2]

    def forward(self, x):
        return self.last(self.first(x).to(self.last.weight.dtype).tanh())


def frozen():
    model = net()
    model[0].weight.requires_grad_(False)
    return objective(model)


def nan_weight():
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    return objective(model)


def inf_buffer():
    model = net(nn.BatchNorm1d(5))
    model[1].running_mean[0] = math.inf
    return objective(model)


def zero_bias():
    model = net()
    nn.init.zeros_(model[0].bias)
    return objective(model)


def all_zero():
    model = net()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return objective(model)


def nan_data():
    inputs = INPUTS.clone()
    inputs[0, 0] = math.nan
    return objective(net(), [(inputs, TARGETS)])


def ragged():
    return objective(net(), [INPUTS, INPUTS[:2]], loss=lambda model, batch: model(batch).square().mean())


def random_outputs():
    return objective(Wrapped(lambda z: z * torch.rand(())))


def infinite_loss():
    return objective(Wrapped(lambda z: z * math.inf))


def root_at_zero():
    return objective(Wrapped(lambda z: (z * 0.0).abs().sqrt()))


def unused():
    model = net()
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    return objective(model)


def detached():
    return objective(Wrapped(lambda z: z.detach() + 0.0 * z))


def without_rule():
    return objective(Wrapped(torch.special.bessel_j0))


def untraceable():
    return objective(Wrapped(lambda z: z * torch.from_numpy(z.detach().numpy().copy()).sum()))


def decides():
    return objective(Wrapped(lambda z: z * (2.0 if float(z.sum()) > -100 else 1.0)))


def attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return objective(Wrapped(lambda z: z.mean(1), layer), [(torch.randn(3, 5, 4), TARGETS[:3])])


def weight_normed():
    model = net().double()
    nn.utils.parametrizations.weight_norm(model[0])
    return objective(model, [(INPUTS.double(), TARGETS)])


class Once(torch.autograd.Function):
    """A square whose backward torch takes for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 2 * ctx.saved_tensors[0] * slope


def once_differentiable():
    return objective(Wrapped(Once.apply))


def raises():
    def fail(_z):
        raise RuntimeError("shapes do not fit")

    return objective(Wrapped(fail))


CASES = [
    (half, "parameters", "warning", "float32 or float64 copies"),
    (mixed, "parameters", "warning", "float32, float64"),
    (frozen, "frozen and tied", "warning", "1 tensor that no direction moves: 0.weight"),
    (nan_weight, "finite weights", "error", "NaN or inf in 0.weight"),
    (inf_buffer, "finite weights", "error", "1.running_mean"),
    (nan_weight, "loss", "error", "nan at w"),
    (zero_bias, "zero weights", "warning", "0.bias; tensor-normalised directions never move them"),
    (all_zero, "zero weights", "error", "4 parameters zero throughout"),
    (lambda: objective(net(nn.BatchNorm1d(5))), "batch norm", "warning", "at their initial values"),
    (nan_data, "data", "error", "NaN or inf in them"),
    (ragged, "data", "warning", "2 to 6 samples: ragged"),
    (random_outputs, "loss", "error", "the forward draws random numbers"),
    (infinite_loss, "loss", "error", "nan at w"),
    (raises, "loss", "error", "RuntimeError: shapes do not fit"),
    (root_at_zero, "gradient", "error", "NaN or inf at model.0.weight"),
    (unused, "gradient", "warning", "zero at spare"),
    (detached, "gradient", "warning", "zero at every parameter"),
    (without_rule, "difference propagation", "warning", "no rule for aten.special_bessel_j0"),
    (untraceable, "difference propagation", "warning", "cannot follow the model"),
    (decides, "difference propagation", "warning", "depend on the weights"),
    (attention, "double backward", "warning", "torch.autograd fails"),
    (once_differentiable, "double backward", "warning", "torch.autograd"),
]


@pytest.mark.parametrize(("make", "check", "severity", "words"), CASES)
def test_what_is_wrong_with_a_model_is_found_and_has_a_remedy(make, check, severity, words, untouched):
    made = make()
    with untouched(made.model):
        found = fs.doctor(made)
    finding = found[check]
    assert (finding.severity, words in finding.found) == (severity, True), finding
    assert finding.remedy
    assert found.worst == "error" or severity != "error"
    assert any(check in flag for flag in found.flags)
    json.dumps(found.to_dict(), allow_nan=False)


def test_products_by_differences_are_a_warning_with_their_error():
    found = fs.doctor(weight_normed())
    assert found["Hessian products"].severity == found["double backward"].severity == "warning"
    assert "fused weight norm in 0" in found["double backward"].found
    assert "by 'gradient difference'" in found["Hessian products"].found
    assert "relative error near" in found["Hessian products"].found


def test_memory_that_does_not_hold_a_product_is_a_warning(monkeypatch):
    from fastscape.probes.doctor import computing as doctor_model

    monkeypatch.setattr(doctor_model, "available_memory", lambda _device: 1000)
    found = fs.doctor(objective(net()))["memory"]
    assert found.severity == "warning"
    assert found.remedy.startswith("smaller batches")
    whole, streamed = (float(text) for text in re.findall(r"([0-9.e-]+) MiB (?:at its peak|a module)", found.found))
    assert 0 < streamed < whole == pytest.approx(footprint(objective(net()), torch.float64).alone / 2**20, rel=0.01)


def test_the_radius_from_which_subtraction_resolves_responses_is_that_of_rounding_and_curvature():
    """A response eps^2 d'Hd is 10 times the rounding error there: a loss 100 w^2 of one weight has d'Hd = 200 w^2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    made = fs.Objective(model, [torch.ones(1, 1)], loss=lambda net, batch: 100 * net(batch).square().mean())
    found = fs.doctor(made)["rounding"].found
    noise, narrow, wide = (float(text) for text in re.findall(r"[0-9.]+e-[0-9]+", found))
    assert noise == pytest.approx(8 * 2**-24 * 900, rel=0.1)
    assert narrow == pytest.approx((10 * noise / 1800) ** 0.5, rel=0.3)
    assert wide == pytest.approx(narrow * 2**-14.5, rel=0.6)


def test_tied_parameters_are_told_and_are_no_fault():
    model = net()
    model.again = nn.Linear(4, 5)
    model.again.weight = model[0].weight
    found = fs.doctor(objective(model, params="[02].*"))["frozen and tied"]
    assert "0.weight = again.weight" in found.found


def test_weights_that_halves_of_a_batch_confirm_are_not_called_a_guess():
    assert "weighted by their samples, which the halves of a batch confirm" in fs.doctor(ragged())["data"].found


def test_running_statistics_of_a_run_are_no_fault():
    model = net(nn.BatchNorm1d(5)).train()
    model(INPUTS)  # a tenth of the way: the loss is still another one
    assert "running statistics, loss" in fs.doctor(objective(model))["batch norm"].found
    model[1].momentum = 1.0
    model(INPUTS)
    assert fs.doctor(objective(model))["batch norm"].severity == "ok"
    fresh = objective(net(nn.BatchNorm1d(5)), batch_norm="batch")
    assert fs.doctor(fresh)["batch norm"].severity == "ok"


def test_the_weights_and_statistics_of_a_checkpoint_are_looked_at():
    model = net(nn.BatchNorm1d(5))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["1.running_mean"] += 1.0
    state["3.bias"][:] = math.nan
    found = fs.doctor(objective(model).at(state))
    assert found["batch norm"].severity == "ok"
    assert "3.bias" in found["finite weights"].found


def test_dropout_is_told_and_is_no_fault():
    found = fs.doctor(objective(net(nn.Dropout(0.5)).train()))
    assert "dropout in 1" in found["random layers"].found
    assert found["loss"].severity == "ok"


def test_ragged_batches_of_a_criterion_are_weighted_and_no_fault():
    found = fs.doctor(objective(net(), [(INPUTS, TARGETS), (INPUTS[:2], TARGETS[:2])]))["data"]
    assert found.severity == "ok"
    assert "ragged, weighted by terms" in found.found


def test_what_needs_the_loss_is_left_out_where_there_is_none():
    checks = [finding.check for finding in fs.doctor(objective(Wrapped(lambda z: z * torch.rand(())))).model]
    assert checks[-1] == "loss"


def test_a_hessian_that_cannot_be_had_is_a_warning(monkeypatch):
    def none(_self, _count):
        raise fs.NoPathError("no path multiplies with the Hessian")

    monkeypatch.setattr("fastscape.curvature.operator.CurvatureOperator.prepare", none)
    found = fs.doctor(objective(net()))["Hessian products"]
    assert (found.severity, found.found) == ("warning", "no path multiplies with the Hessian")


def test_a_wrong_double_backward_is_found(monkeypatch):
    from fastscape.probes.doctor import computing as doctor_model

    real = doctor_model.double_backward

    def wrong(*arguments):
        loss, parts = real(*arguments)()
        return lambda: (loss, [1.1 * part for part in parts])

    monkeypatch.setattr(doctor_model, "double_backward", wrong)
    found = fs.doctor(objective(net()))["double backward"]
    assert found.severity == "warning"
    assert "wrong by 0.09" in found.found


def test_something_else_than_an_objective_is_refused():
    with pytest.raises(TypeError, match=r"objective must be a fastscape.Objective, got Sequential"):
        fs.doctor(net())


# ---------------------------------------------------------------------- results


def test_a_diagnosis_is_saved_shown_and_read_back(tmp_path):
    found = fs.doctor(objective(net()))
    again = fs.load(found.save(tmp_path / "doctor"))
    assert isinstance(again, Diagnosis)
    assert str(again) == str(found)
    assert again.findings == found.findings
    with pytest.raises(KeyError, match="unknown check 'other'; expected one of native kernels"):
        found["other"]


def test_the_worst_finding_leads_the_verdict():
    findings = tuple(Finding(name, name, "words", "remedy") for name in ("ok", "warning", "error"))
    for count, severity in enumerate(("ok", "warning", "error"), start=1):
        found = Diagnosis("m", None, (), findings[:count], {})
        assert found.worst == severity
        assert f"{int(count == 3)} error" in found.verdict()
    assert found.verdict().startswith("Something must be put right first: error")
    assert Diagnosis("machine", None, (), (), {}).worst == "ok"
