"""Inside an evaluation the arithmetic is plain IEEE; outside nothing changed."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import process_state
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import BaseTorchDispatchMode, _get_current_dispatch_mode_stack

import fastscape as fs
from fastscape._state import exact_arithmetic


class Recorder(nn.Module):
    """Notes the global settings under which it is evaluated."""

    seen: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        Recorder.seen.append(process_state() | {"dtype": x.dtype, "weight": self.linear.weight.dtype, "mode": self.training})
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
def test_evaluations_run_in_exact_arithmetic_whatever_the_caller_set(digits, precision):
    model = Recorder().train()
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    Recorder.seen.clear()
    try:
        with torch.autocast("cpu"):
            fs.losses(objective, fs.Directions(objective, 1), [0.1], precision=precision, method="loop")
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = False
    dtypes = [state["dtype"] for state in Recorder.seen]
    assert (
        dtypes.count(getattr(torch, precision)) >= len(dtypes) - 2 > 0
    )  # the first evaluation, and the gate's comparison, are in the model's own dtype
    for state in Recorder.seen:
        assert state["fp32 precision"] == ["ieee"] * 6
        assert state["matmul precision"] == "highest"
        assert state["allow tf32"] == (False, False)
        assert state["reduced"] == (False, False)
        assert not state["cudnn"][0]
        assert not state["mha"]
        assert state["sdpa"] == (False, False, True)
        assert state["grad"] == (False, False)
        assert not state["autocast"][0]
        assert state["default"][0] == state["dtype"] == state["weight"]
        assert not state["mode"]


def interrupted():
    with exact_arithmetic(torch.float64):
        torch.rand(3)
        raise KeyboardInterrupt


def test_settings_and_generators_come_back_after_an_exception():
    before = process_state()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert process_state() == before


@pytest.mark.parametrize(
    "setting",
    [
        "torch.set_float32_matmul_precision('high')",
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.backends.cudnn.allow_tf32 = False",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    ],
)
def test_every_way_to_set_precision_survives(setting):
    """In a process of its own: some of these settings cannot be undone through torch's interface."""
    code = (
        f"import torch; {setting}\n"
        "from conftest import process_state\nfrom fastscape._state import exact_arithmetic\n"
        "before = process_state()\n"
        "with exact_arithmetic(torch.float32):\n    inside = process_state()\n"
        "assert inside['fp32 precision'] == ['ieee'] * 6, inside\n"
        "assert 'refused' not in (inside['matmul precision'], *inside['allow tf32']), inside\n"
        "after = process_state()\nassert after == before, {k: (before[k], after[k]) for k in before if before[k] != after[k]}\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_modes_that_an_interruption_left_standing_are_taken_down():
    """As Ctrl-C does within torch's own ``__exit__`` of a mode."""
    before = torch._C._len_torch_function_stack(), len(_get_current_dispatch_mode_stack())
    with suppress(KeyboardInterrupt), exact_arithmetic(torch.float64):
        torch.overrides.BaseTorchFunctionMode().__enter__()
        BaseTorchDispatchMode().__enter__()
        raise KeyboardInterrupt
    assert (torch._C._len_torch_function_stack(), len(_get_current_dispatch_mode_stack())) == before
