"""Spectra round-trip through files, tables say what has converged and what has not, figures draw every state."""

import dataclasses
import json
import math
import re

import matplotlib as mpl
import numpy as np
import pytest
import spectra
import torch
from equality import same
from matplotlib.figure import Figure

import fastscape as fs
from fastscape.numerics.spectra import Gap
from fastscape.probes.spectrum import figures as spectrum_figures
from fastscape.probes.spectrum import words as spectrum_tables
from fastscape.reports import numbers, tables
from fastscape.reports.html import write_html

mpl.use("agg")
NAN = fs.Estimate(math.nan, math.nan, (math.nan, math.nan), 0)


@pytest.fixture(scope="module")
def matrix():
    return spectra.planted()


@pytest.fixture(scope="module")
def result(matrix):
    layers = {"conv.weight": slice(0, 70), "conv.bias": slice(70, 80), "array": slice(80, 120)}
    return spectra.spectrum_of(matrix, layers=layers, name="step100", step=100, stability=spectra.sgd(9.0, batch=NAN))


@pytest.fixture(scope="module")
def one_probe(matrix):
    """One probe has no interval and no band."""
    return spectra.spectrum_of(matrix, probes=1, name="one probe")


@pytest.fixture(scope="module")
def broken():
    """What a run knows whose first product is NaN."""
    none = np.empty(0)
    fields = dict.fromkeys(("eigenvalues", "residuals", "smallest", "smallest_residuals"), none)
    fields |= dict.fromkeys(("converged", "smallest_converged"), none.astype(bool))
    fields |= dict.fromkeys(("trace", "trace_square", "effective_rank", "mean_curvature", "directional_variance"), NAN)
    return spectra.spectrum_of(
        spectra.planted(),
        **fields,
        steps=0,
        name="<broken & co>",
        loss=math.nan,
        accuracy=None,
        gradient_norm=math.inf,
        gradient_curvature=math.nan,
        trace_data_stderr=None,
        layer_traces={"w": NAN},
        meta=spectra.META | {"stop_reason": "nan products", "nan_products": 4, "path": None, "gradients_per_product": None},
        notes=("the gradient is not finite: no curvature along it",),
    )


@pytest.fixture(scope="module")
def partial(matrix):
    """Interrupted early: one eigenvalue of one end, nothing converged, no density."""
    return spectra.spectrum_of(
        matrix,
        k=1,
        steps=0,
        probes=2,
        converged=np.array([False]),
        smallest=np.empty(0),
        smallest_residuals=np.empty(0),
        smallest_converged=np.empty(0, dtype=bool),
        meta=spectra.META | {"stop_reason": "interrupted"},
    )


@pytest.fixture(scope="module")
def trajectory():
    return spectra.trajectory_of()


@pytest.fixture(scope="module")
def states(result, one_probe, broken, partial):
    return result, one_probe, broken, partial


def test_files_round_trip_to_the_last_bit(states, trajectory, tmp_path):
    for index, value in enumerate((*states, trajectory)):
        loaded = fs.load(value.save(tmp_path / f"r{index}"))
        assert same(loaded, value)
        assert loaded.summary() == value.summary()


def test_vectors_stay_in_memory(result, tmp_path):
    warm = dataclasses.replace(result, vectors=torch.ones(120, 5))
    path = warm.save(tmp_path / "warm")
    assert fs.load(path).vectors is None
    assert "vectors" not in warm.to_dict()
    along = fs.SpectrumTrajectory((warm,), {"stop_reason": "targets met"})
    assert same(fs.load(along.save(tmp_path / "along")).points[0], result)
    assert warm.vectors is not None


def test_files_hold_no_pickles(result, tmp_path):
    with np.load(result.save(tmp_path / "r"), allow_pickle=False) as archive:
        assert json.loads(str(archive["document"]))["kind"] == "spectrum"
        np.testing.assert_array_equal(archive["result.eigenvalues"], result.eigenvalues)
        np.testing.assert_array_equal(archive["result.density.nodes"], result.density.nodes)


def test_json_is_strict_and_complete(states, trajectory):
    for value in (*states, trajectory):
        json.loads(value.to_json(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    document = json.loads(states[0].to_json())
    assert document["eigenvalues"] == states[0].eigenvalues.tolist()
    assert document["gap"]["resolved"] is True
    assert document["flags"] == list(states[0].flags)
    assert json.loads(states[2].to_json())["loss"] is None


def test_the_spectral_norm_is_the_larger_end_in_size(result):
    assert result.spectral_norm == result.lambda_max == result.eigenvalues[0]
    flipped = dataclasses.replace(result, smallest=-20 * np.abs(result.smallest))
    assert flipped.spectral_norm == -flipped.lambda_min
    assert any("lambda_max is not the spectral norm" in flag for flag in flipped.flags)
    assert not any("spectral norm" in flag for flag in result.flags)


def test_a_gap_within_its_bound_is_unresolved(result):
    values, residuals = np.array([6.801, 6.800, 6.0]), np.array([0.001, 0.002, 0.0])
    gap = Gap.between(values, residuals)
    assert (gap.value, gap.bound) == pytest.approx((0.001, 0.003))
    assert not gap.resolved
    close = dataclasses.replace(result, eigenvalues=values, residuals=residuals, converged=np.ones(3, bool))
    assert "unresolved (0.001 within ± 0.003)" in close.summary()
    assert any("may be one eigenvalue" in flag for flag in close.flags)
    assert Gap.between(values, residuals / 100).resolved
    assert math.isnan(Gap.between(values[:1], residuals[:1]).value)


def test_the_table_shows_every_value_with_its_error(result):
    text = result.summary()
    for value, residual in zip(result.eigenvalues, result.residuals, strict=True):
        assert numbers.with_error(value, residual) in text
    for estimate in (result.trace, result.trace_square, result.effective_rank, result.mean_curvature):
        assert numbers.interval(estimate) in text
    assert f"probe error {numbers.number(result.trace.stderr, 2)}" in text
    assert f"data error {numbers.number(result.trace_data_stderr, 2)}" in text
    assert "not converged" in text
    assert "trace of conv.weight" in text
    assert "1.62 gradients per product" in text
    assert "not linearised replay" in text
    assert "set-up costs more than it saves" in text
    assert "lambda_max at the edge of SGD, learning rate 0.2" in text
    flat = " ".join(text.split())
    for flag in result.flags:
        assert flag in flat


def test_values_are_rounded_to_their_error():
    assert numbers.with_error(70.63076, 7.1e-4) == "70.63076 ± 0.00071"
    assert numbers.with_error(9.8375, 0.223) == "9.84 ± 0.22"
    assert numbers.with_error(12345.6, 210.0) == "12346 ± 210"
    assert numbers.with_error(1.234567e-7, 2e-10) == "1.2346e-07 ± 2.0e-10"
    assert numbers.with_error(3.5, 0.0) == "3.5 ± 0"
    assert numbers.with_error(math.nan, math.nan) == "n/a ± n/a"


def test_what_dominates_the_error_of_the_trace_is_flagged(result):
    noisy = dataclasses.replace(result, trace_data_stderr=10 * result.trace.stderr)
    assert any("more data narrow it" in flag for flag in noisy.flags)
    assert not any("more data narrow it" in flag for flag in result.flags)
    single = dataclasses.replace(result, trace_data_stderr=None)
    assert "data error unknown: one batch" in single.summary()


def test_verdicts_are_one_sentence(states, trajectory):
    for value in (*states, trajectory):
        text = value.verdict()
        assert text.endswith(".")
        assert "\n" not in text
        assert "nan" not in text.replace("nan products", "")
    result, _, broken, partial = states
    assert f"{numbers.number(result.stability.ratio)} of the edge of stability of SGD" in result.verdict()
    assert broken.verdict() == "No spectrum of the Hessian: nan products."
    assert any("4 products of H held NaN" in flag for flag in broken.flags)
    assert "the largest eigenvalue has not converged; read it with its residual" in partial.flags
    assert any("no eigenvalue at the smallest end" in flag for flag in partial.flags)
    assert "stability ratio is 0.99 at most (step150; 1 = edge)" in trajectory.verdict()


@pytest.mark.parametrize("width", [60, 80, 100, 150])
def test_tables_fit_narrow_terminals(states, trajectory, width):
    for value in states:
        text = tables.as_text(value.table(), width)
        assert max(map(len, text.splitlines())) <= width
    text = tables.as_text(trajectory.table(), width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 80:
        for point in trajectory.points:
            row = next(line for line in text.splitlines() if f" {point.name} " in line)
            assert numbers.number(point.lambda_max, 4) in row
            assert numbers.interval(point.trace) in row
            assert numbers.number(point.stability.ratio) in row
    assert ("left out below 120 columns" in text) is (width < 120)


def test_columns_that_no_checkpoint_has_are_left_out():
    bare = spectra.trajectory_of((0.5, 1.0), stable=False, accuracy=None, steps=0)
    names = spectrum_tables.series_rows(bare.points)[0].keys()
    assert not {"stability", "eta lambda", "accuracy", "negative % [95 %]"} & names
    assert {"lambda_max", "trace [95 %]", "eff. rank [95 %]"} <= names


def test_flags_that_differ_in_numbers_are_one_line(result):
    names = {"a": "|tr H| is 0.3 of tr |H|", "b": "|tr H| is 0.05 of tr |H|", "c": "the gradient is zero"}
    points = [dataclasses.replace(result, name=name, notes=(note,), converged=np.ones(5, bool)) for name, note in names.items()]
    points = [dataclasses.replace(point, smallest_converged=np.ones(5, bool)) for point in points]
    assert tables.shared_flags(points) == ["a, b: |tr H| is 0.05 .. 0.3 of tr |H|", "c: the gradient is zero"]
    assert tables.shared_flags(points[:2])[0].startswith("all checkpoints: ")


def test_series_hold_values_and_bounds(trajectory, broken):
    value, low, high = trajectory.series("lambda_max")
    np.testing.assert_array_equal(value, [point.eigenvalues[0] for point in trajectory.points])
    np.testing.assert_allclose(high - low, [2 * point.residuals[0] for point in trajectory.points])
    value, low, high = trajectory.series("trace")
    assert (low[0], high[0]) == trajectory.points[0].trace.interval
    assert np.isnan(trajectory.series("stability_ratio")[1]).all()
    np.testing.assert_array_equal(trajectory.series("critical")[0], 10.0)
    assert trajectory.steps.tolist() == [0, 50, 100, 150, 200]
    nothing = fs.SpectrumTrajectory((broken,), {})
    for name in ("lambda_max", "negative_mass", "stability_ratio", "batch_sharpness", "loss", "accuracy"):
        assert np.isnan(nothing.series(name)).all()
    with pytest.raises(ValueError, match="name must be one of lambda_max, .*, got 'sharpness'"):
        trajectory.series("sharpness")


@pytest.mark.parametrize("draw", spectrum_figures.CHECKPOINT_FIGURES, ids=lambda draw: draw.__name__)
def test_figures_take_an_axis_label_it_and_return_it(draw, states):
    for value in states:
        figure = Figure()
        ax = figure.subplots()
        assert draw(value, ax) is ax
        figure.canvas.draw()
        assert ax.get_title()
    ax = draw(states[0], Figure().subplots())
    assert ax.get_xlabel()


def test_the_density_figure_marks_the_eigenvalues_at_the_height_of_one(result):
    ax = spectrum_figures.density(result, Figure().subplots())
    marks = [container.lines[0].get_xydata() for container in ax.containers]
    np.testing.assert_array_equal(np.concatenate([xy[:, 0] for xy in marks[:2]]), result.eigenvalues)
    one = 1 / (result.size * result.density.width * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(np.concatenate([xy[:, 1] for xy in marks]), one)
    curve = max(ax.lines, key=lambda line: len(line.get_xdata()))
    np.testing.assert_array_equal(curve.get_xdata(), result.density.grid)
    share = f"{100 * result.density.negative_mass.value:.1f} % below zero"
    assert share in [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_stem_figure_shows_both_ends_in_order_of_rank(result):
    ax = spectrum_figures.eigenvalues(result, Figure().subplots())
    drawn = np.concatenate([container.lines[0].get_xydata() for container in ax.containers])
    drawn = drawn[np.argsort(drawn[:, 0])]
    np.testing.assert_array_equal(drawn[:, 1], [*result.eigenvalues, *result.smallest[::-1]])
    ranks = {label.get_position()[0]: label.get_text() for label in ax.get_xticklabels()}
    assert [ranks[place] for place in sorted(ranks)] == [*"12345", "116", "117", "118", "119", "120"]


def test_layers_are_in_order_of_size_whatever_their_sign(result):
    traces = {name: fs.Estimate(value, 1.0, (value, value), 6) for name, value in (("a", 1.0), ("b", math.nan), ("c", -3.0))}
    assert [name for name, _ in spectrum_tables.layer_order(dataclasses.replace(result, layer_traces=traces))] == ["c", "a", "b"]


def test_a_ratio_of_another_loss_is_flagged(result):
    stability = dataclasses.replace(result.stability, notes=("batch norm takes its running statistics", "one batch"))
    flags = dataclasses.replace(result, stability=stability).flags
    assert flags[-1] == "stability ratio: batch norm takes its running statistics"
    assert len(flags) == len(result.flags) + 1


def test_layers_beyond_a_dozen_are_summed(result):
    many = {f"layer{index}": fs.Estimate(float(20 - index), 1.0, (19.0 - index, 21.0 - index), 6) for index in range(20)}
    ax = spectrum_figures.layer_traces(dataclasses.replace(result, layer_traces=many), Figure().subplots())
    assert [bar.get_width() for bar in ax.patches] == [*range(20, 8, -1), sum(range(1, 9))]
    assert [text.get_text() for text in ax.texts][-1] == "8 more"


def test_trajectory_panels_show_the_series_and_the_edge(trajectory):
    axes = list(Figure().subplots(2, 2).flat)
    spectrum_figures.trajectory_panels(trajectory, axes)
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), trajectory.series("lambda_max")[0])
    edge = next(line for line in axes[0].lines if line.get_linestyle() == "--")
    np.testing.assert_array_equal(edge.get_ydata(), 10.0)
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), trajectory.series("stability_ratio")[0])
    np.testing.assert_array_equal(axes[2].lines[0].get_ydata(), trajectory.series("trace")[0])
    np.testing.assert_array_equal(axes[3].lines[0].get_ydata(), trajectory.series("effective_rank")[0])
    with pytest.raises(ValueError, match="axes must be four, got 2"):
        spectrum_figures.trajectory_panels(trajectory, axes[:2])


def test_a_preconditioned_edge_is_not_drawn_over_raw_eigenvalues():
    """The critical value of Adam is one of P^-1 H."""
    points = spectra.trajectory_of((0.5, 1.0)).points
    adam = tuple(dataclasses.replace(point, stability=spectra.sgd(point.lambda_max, preconditioned=30.0)) for point in points)
    ax = spectrum_figures.sharpness(fs.SpectrumTrajectory(adam, {}), Figure().subplots())
    assert not [line for line in ax.lines if line.get_linestyle() == "--"]


@pytest.mark.parametrize(("first", "scale"), [(169.0, "log"), (0.5, "linear"), (-0.1, "linear")])
def test_ratios_far_beyond_the_edge_are_on_a_log_axis(trajectory, first, scale):
    far = dataclasses.replace(trajectory.points[0], stability=dataclasses.replace(trajectory.points[0].stability, ratio=first))
    along = fs.SpectrumTrajectory((far, *trajectory.points[1:]), {})
    ax = spectrum_figures.stability_ratio(along, Figure().subplots())
    assert ax.get_yscale() == scale
    low, high = ax.get_ylim()
    assert low < min(1.0, first) < max(1.0, first) < high


def test_without_an_optimizer_the_negative_end_is_shown():
    bare = spectra.trajectory_of((0.5, 1.0), stable=False)
    ax = spectrum_figures.stability_ratio(bare, Figure().subplots())
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [-point.lambda_min / point.lambda_max for point in bare.points])


def test_plot_makes_its_own_axis(result, trajectory):
    import matplotlib.pyplot as plt

    assert result.plot().get_title()
    assert len(trajectory.plot()) == 4
    plt.close("all")


def test_pages_are_self_contained_escaped_and_leave_matplotlib_alone(states, trajectory, tmp_path):
    before = dict(mpl.rcParams)
    for index, value in enumerate((*states, trajectory)):
        page = write_html(value, tmp_path / f"{index}.html").read_text()
        assert not re.search(r'(src|href)="https?:', page)
        assert "<svg" in page
        for point in value.points if hasattr(value, "points") else (value,):
            for flag in point.flags:
                assert flag.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;") in page
    assert "&lt;broken &amp; co&gt;" in (tmp_path / "2.html").read_text()
    assert "target trace" in (tmp_path / "0.html").read_text()
    assert dict(mpl.rcParams) == before


def test_a_spectrum_beside_a_spectrum_is_refused(result, tmp_path):
    with pytest.raises(TypeError, match="spectrum belongs beside a multifractal result, got a SpectrumResult"):
        write_html(result, tmp_path / "page.html", spectrum=result)
    assert not (tmp_path / "page.html").exists()


def test_repr_is_one_line(states, trajectory):
    for value in (*states, trajectory, states[0].density):
        text = repr(value)
        assert "\n" not in text
        assert len(text) < 400
    assert repr(states[0]).startswith("<SpectrumResult 'step100': Hessian of 120 parameters, lambda_max = 9, ")
    assert repr(trajectory) == "<SpectrumTrajectory 'step0' .. 'step200': 5 checkpoints, 1200 products>"


def test_ends_that_have_not_converged_are_marked_wherever_they_stand(result):
    open_ = dataclasses.replace(result, converged=np.zeros(5, bool), smallest_converged=np.zeros(5, bool))
    done = dataclasses.replace(result, converged=np.ones(5, bool), smallest_converged=np.ones(5, bool))
    top, bottom = numbers.number(result.lambda_max, 4), numbers.number(result.lambda_min, 4)
    for point, mark in ((open_, "~"), (done, "")):
        assert f"lambda_max = {mark}{top}, lambda_min = {mark}{bottom}" in spectrum_tables.brief(point)
        norm = next(row for row in spectrum_tables.eigenvalue_rows(point) if row[0] == "spectral norm")
        assert norm[1].startswith("~") is bool(mark)
        row = spectrum_tables.series_rows([point])[0]
        assert (row["lambda_max"], row["lambda_min"]) == (f"{mark}{top}", f"{mark}{bottom}")
    later = dataclasses.replace(done, name="later", eigenvalues=3 * done.eigenvalues)
    assert f"lambda_max goes ~{top} -> " in fs.SpectrumTrajectory((open_, later), {}).verdict()
    assert f"lambda_max goes {top} -> " in fs.SpectrumTrajectory((done, later), {}).verdict()


def test_the_share_below_zero_has_its_interval_or_says_that_there_is_none(result):
    mass = result.density.negative_mass
    shown = spectrum_tables.series_rows([result])[0]["negative % [95 %]"]
    value, low, high = (float(number) for number in re.findall(r"[\d.]+", shown))
    assert (value, low, high) == pytest.approx(tuple(100 * number for number in (mass.value, *mass.interval)), abs=0.51)
    unknown = dataclasses.replace(mass, withheld="too few probes")
    withheld = dataclasses.replace(result, density=dataclasses.replace(result.density, negative_mass=unknown))
    assert spectrum_tables.series_rows([withheld])[0]["negative % [95 %]"].endswith("[n/a]")


def test_one_checkpoint_is_shown_with_its_residuals_and_nothing_is_along_training(result):
    alone = fs.SpectrumTrajectory((result,), {"settings": {"checkpoints": ["step3"]}})
    assert alone.section().title == result.section().title
    assert alone.section().quantities == result.section().quantities
    assert alone.verdict() == result.verdict()
    assert "along training" not in alone.summary()


def test_checkpoints_that_were_not_reached_are_counted(result):
    names = [f"step{step}" for step in range(8)]
    meta = {"settings": {"checkpoints": names}, "stop_reason": "interrupted"}
    one, two = (fs.SpectrumTrajectory((result,) * count, meta) for count in (1, 2))
    assert one.verdict().startswith("1 of 8 checkpoints have a spectrum (interrupted before the others)")
    assert two.verdict().startswith("2 of 8 checkpoints have a spectrum (interrupted before the others)")
    assert fs.SpectrumTrajectory((result, result), {}).verdict().startswith("2 of 2 checkpoints have a spectrum: ")
