"""The critical sharpness along training: warm, cheap, and as it is measured alone."""

import math

import matplotlib as mpl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo

mpl.use("agg")


class Counting(nn.Module):
    """Counts its forwards outside of training."""

    forwards = 0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))

    def forward(self, x):
        Counting.forwards += not self.training
        return self.net(x)


def tracked(make, steps=12, every=4, **options):
    model, data = Counting(), zoo.digits(samples=64)
    optimizer, taken, alone = make(model.parameters()), [], {}
    objective = fs.Objective(model, data, criterion=F.cross_entropy)
    tracker = fs.Tracker(objective, every=every, share=1e6, what=("critical_sharpness",), **options)
    for step in range(steps + 1):
        if step:
            optimizer.zero_grad()
            F.cross_entropy(model(data[0][0]), data[0][1]).backward()
            optimizer.step()
        before = Counting.forwards
        tracker.step(step, optimizer=optimizer)
        taken.append(Counting.forwards - before)
        if step % every == 0:
            alone[step] = fs.critical_sharpness(objective, optimizer=optimizer, tolerance=0.01, curvature=False)
    return tracker.finish(), taken, alone


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.2), lambda p: torch.optim.Adam(p, lr=1e-3)])
def test_points_after_the_first_take_a_gradient_and_a_few_forwards(make):
    found, taken, alone = tracked(make)
    assert [point.step for point in found.points] == [0, 4, 8, 12]
    assert not any(point.left_out for point in found.points)
    for point in found.points:
        expected = alone[point.step].eta_c.value
        assert point.values["eta_c"] == pytest.approx(expected, rel=0.05)
        assert point.values["lambda_c"] == pytest.approx(2 / point.values["eta_c"])
        low, high = point.intervals["lambda_c"]
        assert low < point.values["lambda_c"] < high
    ratios = [alone[after].eta_c.value / alone[after - 4].eta_c.value for after in (4, 8, 12)]
    forwards = [count for count in taken if count]  # a point is measured once its time has been earned
    assert len(forwards) >= 3
    for count, ratio in zip(forwards[1:], ratios, strict=False):
        assert count <= 7 + abs(math.log2(ratio))  # a gradient, and six from a guess within a factor of two


def test_lambda_c_is_drawn_beside_two_over_the_rate():
    found, _, _ = tracked(lambda p: torch.optim.SGD(p, lr=0.2))
    ax = found.plot()  # of lambda_c, where there is no eigenvalue
    assert ax.get_title() == "lambda c"
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}
    assert drawn["2 / learning rate"] == pytest.approx([10.0] * 4)
    assert drawn["lambda c"] == [point.values["lambda_c"] for point in found.points]
    ax = found.plot(name="eta_c")
    assert [0.2] * 4 in [list(line.get_ydata()) for line in ax.get_lines()]
    assert "critical sharpness along the optimizer's step" in str(found)


def test_a_step_that_cannot_be_made_is_left_out_and_training_goes_on():
    model, data = Counting(), zoo.digits(samples=64)
    objective = fs.Objective(model, data, criterion=F.cross_entropy)
    tracker = fs.Tracker(objective, every=1, share=1e6, what=("loss", "critical_sharpness"))
    state = {"optimizer_class": "Lookahead", "optimizer": torch.optim.SGD(model.parameters(), lr=0.1).state_dict()}
    tracker.step(0, optimizer=state)  # waits for its time
    with pytest.warns(fs.TrackerWarning, match="critical_sharpness failed at step 0, training continues"):
        tracker.step(1, optimizer=state)
    point = tracker.finish().points[0]
    assert "loss" in point.values
    assert "state of a class of torch.optim" in point.left_out["critical_sharpness"]
