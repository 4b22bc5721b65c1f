"""Files round-trip without pickles, tables and pages say what was found, figures draw every state."""

import contextlib
import dataclasses
import json
import math
import os
import re

import matplotlib as mpl
import numpy as np
import pytest
import spectra
import torch
from equality import same
from matplotlib.figure import Figure
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.numerics.estimate import apart
from fastscape.numerics.positive import BY_MODEL
from fastscape.probes.multifractal import figures, leads
from fastscape.probes.multifractal import words as multifractal_words
from fastscape.probes.multifractal.changes import paired, shares
from fastscape.probes.spectrum.words import SHARPNESS, STABILITY, stability_text
from fastscape.reports import numbers, storage, tables
from fastscape.reports.html import write_html
from fastscape.reports.sections import section_table

mpl.use("agg")
QUICK = fs.AnalysisSettings(bootstrap=50, permutations=99)
RADII = tuple(np.logspace(-3, -1, 8))


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    torch.manual_seed(0)
    files = zoo.train(zoo.cnn(width=2), zoo.digits(samples=256), tmp_path_factory.mktemp("run"), steps=30, checkpoints=3)
    objective = fs.Objective(zoo.cnn(width=2), zoo.digits(samples=64), criterion=F.cross_entropy)
    return fs.trajectory(objective, files, fs.ProbeSettings(radii=RADII, count=16, banks=2), QUICK)


@pytest.fixture(scope="module")
def result(trajectory):
    return trajectory.points[-1]


@pytest.fixture(scope="module")
def spectrum_along(trajectory):
    """Spectra of the same checkpoints, of planted matrices."""
    found = spectra.trajectory_of((0.5, 1.0, 2.0))
    points = [dataclasses.replace(a, name=b.name, step=b.step) for a, b in zip(found.points, trajectory.points, strict=True)]
    return fs.SpectrumTrajectory(tuple(points), found.meta)


@pytest.fixture(scope="module")
def broken():
    """A result without numbers: NaN weights."""
    model = zoo.mlp(hidden=(4,))
    with torch.no_grad():
        model[1].weight.fill_(torch.nan)
    objective = fs.Objective(model, zoo.digits(samples=16), criterion=F.cross_entropy)
    return fs.multifractal(objective, fs.ProbeSettings(count=2), QUICK, name="<broken & co>")


def test_files_round_trip_to_the_last_bit(result, trajectory, broken, tmp_path):
    for name, value in (("one", result), ("many.npz", trajectory), ("broken", broken)):
        path = value.save(tmp_path / name)
        assert path.suffix == ".npz"
        assert same(fs.load(path), value)
        assert fs.load(path).summary() == value.summary()


def test_files_hold_no_pickles_and_are_readable_by_numpy_alone(result, tmp_path):
    with np.load(result.save(tmp_path / "r"), allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)
        document = json.loads(str(archive["document"]))
        np.testing.assert_array_equal(archive["result.measured.even"], result.measured.even)
    assert document["kind"] == "multifractal"
    assert document["result"]["meta"]["data_fingerprint"] == result.meta["data_fingerprint"]


def test_analysis_runs_again_from_the_file_without_the_model(result, tmp_path):
    again = fs.load(result.save(tmp_path / "r"))
    assert same(again.reanalyse().analysis, result.analysis)
    narrow = again.reanalyse(windows=((2, 8),), q=(-1, 0.5, 2, 3))
    assert narrow.analysis.windows == ((2, 8),)
    assert narrow.analysis.settings.q == (-1, 0, 0.5, 1, 2, 3)
    direct = fs.analyse(result.measured.response("even"), result.measured.radii, settings=narrow.analysis.settings)
    assert narrow.analysis.estimates["m_tau"] == direct.estimates["m_tau"]
    assert again.reanalyse(variant="odd").analysis.estimates["h_mean"].value < 1.5


def test_a_full_disk_leaves_the_older_file_whole(result, tmp_path, monkeypatch):
    path = result.save(tmp_path / "r")
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        result.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["r.npz"]


def test_a_missing_directory_is_named(result, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be in an existing directory, got '.*/nowhere/r.npz'"):
        result.save(tmp_path / "nowhere" / "r")


def test_an_unwritable_place_is_named_without_the_temporary_file(result, tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError) as refused:
        result.save(tmp_path / "r")
    assert str(refused.value) == f"[Errno 13] Permission denied: '{tmp_path / 'r.npz'}'"


def test_files_of_others_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "kind.npz", document=np.array(json.dumps({"kind": "sharpness", "result": {}})))
    for name in ("other", "text", "kind"):
        with pytest.raises(ValueError, match="must be a result file written by fastscape"):
            fs.load(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError):
        fs.load(tmp_path / "none.npz")


def test_every_damaged_byte_is_a_value_error(result, tmp_path):
    path = result.save(tmp_path / "whole")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 20)):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(ValueError):
            fs.load(path)


def test_json_is_strict_and_complete(result, broken, trajectory):
    document = json.loads(result.to_json(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert document["analysis"]["estimates"]["c2"]["value"] == result.analysis.estimates["c2"].value
    assert document["verdict"] == result.verdict()
    assert json.loads(broken.to_json())["loss"] is None
    assert [point["name"] for point in json.loads(trajectory.to_json())["points"]] == ["step0", "step1", "step30"]


def test_the_table_shows_every_value_and_every_flag(result, trajectory, broken):
    text = result.summary()
    estimate = result.analysis.estimates["h_median"]
    assert numbers.interval(estimate) in text
    for label, _ in multifractal_words.QUANTITIES.values():
        assert label in text
    for value in (result, broken):
        flat = " ".join(str(value).split())
        for flag in value.flags:
            assert flag in flat
    assert re.search(r"step30 .*100", trajectory.summary()) or "step30" in trajectory.summary()


def test_numbers_are_rounded_to_their_uncertainty():
    assert numbers.interval(fs.Estimate(0.12345, 0.01, (0.1012, 0.1457), 10)) == "0.123 [0.101, 0.146]"
    assert numbers.interval(fs.Estimate(12.345, 1, (10.1, 14.6), 10)) == "12.3 [10.1, 14.6]"
    assert numbers.interval(None) == "n/a"
    assert numbers.p_text(0.0004) == "< 0.001"
    assert numbers.p_text(float("nan")) == "n/a"


@pytest.mark.parametrize("draw", figures.CHECKPOINT_FIGURES, ids=lambda draw: draw.__name__)
def test_figures_take_an_axis_label_it_and_return_it(draw, result, broken):
    for value in (result, broken):
        figure = Figure()
        ax = figure.subplots()
        assert draw(value, ax) is ax
        figure.canvas.draw()
        assert ax.get_title()
    figure = Figure()
    ax = draw(result, figure.subplots())
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_the_response_figure_shows_the_data_and_the_noise_floor(result):
    ax = figures.log_response(result, Figure().subplots())
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    together = np.abs(np.concatenate(result.measured.response("even"), axis=1))
    np.testing.assert_allclose(lines["median"], np.median(together, axis=1))
    np.testing.assert_array_equal(lines["rounding noise (RMS)"], result.measured.noise)


def test_trajectory_panels_show_the_series(trajectory):
    axes = list(Figure().subplots(2, 3).flat)
    figures.trajectory_panels(trajectory, axes)
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), trajectory.series("m_tau_supported")[0])
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), trajectory.series("c2")[0])
    with pytest.raises(ValueError, match="axes must be six, got 2"):
        figures.trajectory_panels(trajectory, axes[:2])


def test_plot_makes_its_own_axis(result, trajectory):
    import matplotlib.pyplot as plt

    assert result.plot().get_title()
    assert len(trajectory.plot()) == 6
    plt.close("all")


def test_pages_are_self_contained_escaped_and_leave_matplotlib_alone(result, trajectory, broken, tmp_path):
    before = dict(mpl.rcParams)
    for name, value in (("one", result), ("many", trajectory), ("broken", broken)):
        page = write_html(value, tmp_path / f"{name}.html").read_text()
        assert not re.search(r'(src|href)="https?:', page)
        assert "<svg" in page
        points = value.points if hasattr(value, "points") else (value,)
        for point in points:
            for flag in point.flags:
                assert flag.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;") in page
    assert "&lt;broken &amp; co&gt;" in page
    assert dict(mpl.rcParams) == before


# ---------------------------------------------------------------------- what the sentences lead with


def responding(result, even):
    """The same result with other even responses ``[banks, K, N]``."""
    counts = np.full(even.shape[0], even.shape[2])
    return dataclasses.replace(
        result, measured=dataclasses.replace(result.measured, even=even, odd=even, counts=counts)
    ).reanalyse()


def scaled(result, directions, noise=0.0):
    """Even responses |g| eps^2 (1 + noise g') of two banks."""
    rng = np.random.default_rng(0)
    size = np.abs(rng.standard_normal((2, 1, directions))) * np.array(RADII)[:, None] ** 2
    return size * (1 + noise * rng.standard_normal((2, len(RADII), directions)))


def test_sentences_lead_with_c2_and_name_mixed_signs(result):
    """Responses that change sign have no moments; the variance of their logarithm has an interval from many directions on."""
    calm, mixed = (responding(result, scaled(result, 40, noise)) for noise in (0.3, 3.0))
    assert not any("change sign" in flag for flag in calm.flags)
    assert any("responses change sign" in flag and "no population value" in flag for flag in mixed.flags)
    assert f"c2 = {numbers.interval(calm.analysis.estimates['c2'])}, p = " in calm.verdict()
    assert "responses of both signs" in mixed.verdict()
    assert "p = " not in mixed.verdict()
    along = fs.TrajectoryResult((calm, mixed), result.meta)
    assert "c2 goes" not in along.verdict(), "one of the two has no interval"
    assert "responses change sign in 1." in along.verdict()
    many = responding(result, scaled(result, 600, 3.0))
    assert "p = " in many.verdict()
    assert "responses change sign" in many.verdict()


def test_a_measure_that_hardly_moves_has_no_p_on_display(result):
    still = responding(result, scaled(result, 40, 1e-3))
    assert still.analysis.scaling == "common"
    assert 0 <= still.analysis.p_value <= 1
    rows = [line for line in still.summary().splitlines() if "p (c2 = 0)" in line]
    assert "n/a" in rows[0]


def test_the_page_of_a_trajectory_shows_flags_and_c2_before_the_sections(trajectory, tmp_path):
    page = write_html(trajectory, tmp_path / "page.html").read_text()
    top = page[: page.index("<details")]
    for flag in tables.shared_flags(trajectory.points):
        assert flag.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;") in top
    for point in trajectory.points:
        assert numbers.cell(point.analysis.estimates["c2"]) in top


def test_results_of_the_first_version_load_and_say_that_they_are_outdated(result, tmp_path):
    """Their p is of permuted scales and their estimates have no method; removed fields are left out, new ones are empty."""
    path = result.save(tmp_path / "old.npz")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    document = json.loads(str(arrays["document"]))
    analysis = document["result"]["analysis"]
    analysis["p_value"] = 0.01
    for name in ("supported", "load", "moved_mass", "split_half"):
        del analysis[name]
    for curve in ("tau", "alpha", "f"):
        del analysis[curve]["withheld"]
    names = ("m_tau", "m_tau_pos", "lambda_tau", "alpha_width", "c1", "c2", "h_mean", "h_std")
    analysis["estimates"] = {name: {"value": 1.0, "stderr": 0.1, "interval": [0.8, 1.2], "n": 32} for name in names}
    for group in ("pooled", "banks"):
        for windows in analysis[group]:
            for window in windows:
                window["holder"]["persistence"] = 1.0
                window["scalars"]["persistence"] = 1.0
    arrays["document"] = np.array(json.dumps(document))
    np.savez_compressed(path, **arrays)
    old = fs.load(path)
    assert np.isnan(old.analysis.p_value)
    assert sum("analysed by version 0.1" in flag for flag in old.flags) == 1
    assert old.summary()
    assert write_html(old, tmp_path / "old.html").exists()
    assert fs.load(old.save(tmp_path / "again")).flags == old.flags
    anew = old.reanalyse()
    assert same(anew.analysis, result.reanalyse().analysis)
    assert not any("version 0.1" in flag for flag in anew.flags)


def test_nothing_is_called_quadratic_by_fewer_than_ten_directions(result):
    few, enough = (responding(result, scaled(result, directions)) for directions in (4, 5))
    assert enough.analysis.quadratic
    assert "the loss is quadratic at these scales" in enough.verdict()
    assert not few.analysis.quadratic
    first, _, rest = few.verdict().partition("were probed. ")  # the network has batch norm, whose two losses differ
    assert first.startswith("Loss ")
    assert rest.startswith("Too few directions to tell, 10 are the least: mean h = 2.00")
    along = fs.TrajectoryResult((few, enough), result.meta)
    assert "the loss is quadratic in 1, 1 with too few directions to tell" in along.verdict()
    assert "2 with too few directions to tell" in fs.TrajectoryResult((few, few), result.meta).verdict()
    assert "the loss is quadratic" not in fs.TrajectoryResult((few, few), result.meta).verdict()


def test_a_trajectory_fits_a_terminal_of_80_columns(trajectory):
    """A row per checkpoint on one line, the headline whole; from 120 columns nothing is left out."""
    for width in (80, 100):
        text = tables.as_text(section_table(trajectory.section()), width)
        assert max(map(len, text.splitlines())) <= width
        assert "left out below 120 columns: " in text
        for point in trajectory.points:
            row = next(line for line in text.splitlines() if point.name in line)
            assert numbers.cell(point.analysis.estimates["c2"]) in row
            assert numbers.p_text(leads.shown_p(point.analysis)) in row
            assert row.rstrip(" │").endswith(str(point.directions))
    for width in (120, 150):
        text = tables.as_text(section_table(trajectory.section()), width)
        assert max(map(len, text.splitlines())) <= width
        assert "left out" not in text
        assert all(word in text for word in ("accuracy", "decades", "||w||"))


def test_repr_is_one_line(result, trajectory, broken):
    for value in (
        result,
        trajectory,
        broken,
        result.measured,
        result.analysis,
        result.analysis.pooled[0][0],
        result.analysis.tau,
    ):
        text = repr(value)
        assert "\n" not in text
        assert len(text) < 500, text
        assert type(value).__name__ in text
    estimate = numbers.interval(result.analysis.estimates["c2"])
    assert repr(result).startswith(f"<MultifractalResult 'step30': 32 directions at 8 scales, c2 = {estimate}, ")
    assert repr(trajectory) == "<TrajectoryResult 'step0' .. 'step30': 3 checkpoints, 96 directions>"
    assert "no multifractal numbers (no scale is trusted" in repr(broken)
    assert "even=[2, 8, 16]" in repr(result.measured)


def test_one_of_a_thing_is_singular(result):
    meta = result.meta | {"batches": 1, "samples": 1.0}
    text = dataclasses.replace(result, meta=meta).summary()
    assert "1 term in 1 batch " in text
    assert "32 in 2 banks" in text
    single = dataclasses.replace(
        result.measured,
        even=result.measured.even[:1, :, :1],
        odd=result.measured.odd[:1, :, :1],
        counts=np.array([1]),
        batches=result.measured.batches[:1],
    )
    one = dataclasses.replace(result, measured=single).reanalyse()
    assert "1 in 1 bank " in one.summary()
    assert repr(one).startswith("<MultifractalResult 'step30': 1 direction at 8 scales, no multifractal numbers")


ESTIMATES = [
    (fs.Estimate(2.0, 0.5, (1.0, 4.0), 9), "2.0 [1.0, 4.0]"),
    (
        fs.Estimate(2.0, 0.5, (0.1, 40.0), 8, "", "8 probes; about 32 for a factor of 3"),
        "2, interval n/a (8 probes; about 32 for a factor of 3)",
    ),
    (fs.Estimate(2.0, math.nan, (math.nan, math.nan), 1), "2, interval n/a"),
    (fs.Estimate(math.nan, math.nan, (math.nan, math.nan), 0, "", "1 direction; at least 8"), "n/a (1 direction; at least 8)"),
    (fs.Estimate(math.nan, math.nan, (math.nan, math.nan), 0), "n/a"),
    (fs.Estimate(120.0, 50.0, (30.0, math.inf), 64), ">= 30"),
    (fs.Estimate(math.inf, math.nan, (30.0, math.inf), 64), ">= 30"),
    (fs.Estimate(1.0, 50.0, (-math.inf, 3.0), 64), "<= 3"),
    (fs.Estimate(1.0, 50.0, (-math.inf, math.inf), 64), "1, interval n/a"),
    (fs.Estimate(0.003, 0.003, (0.0, 0.009), 64), "0.0030 [0.0000, 0.0090]: not distinguishable from 0"),
    (fs.Estimate(0.2, math.nan, (0.2, 0.5), 3, BY_MODEL), ">= 0.2 (<= 0.5 in the quadratic model)"),
    (fs.Estimate(0.0, 0.0, (0.0, 0.0), 3), "0 [0, 0]"),
]


@pytest.mark.parametrize(("estimate", "words"), ESTIMATES)
def test_an_estimate_is_an_interval_a_reason_or_a_bound_on_terminals_and_in_json(estimate, words):
    assert numbers.interval(estimate) == words
    content = storage.plain({"nested": [estimate]})["nested"][0]
    assert content["shown"] == words
    if estimate.withheld:
        assert (content["interval"], content["withheld"]) == ([None, None], estimate.withheld)
    json.dumps(content, allow_nan=False)


def test_units_stand_behind_the_numbers():
    assert numbers.interval(fs.Estimate(34.0, 3.0, (31.0, 37.0), 9), unit=" %") == "34.0 [31.0, 37.0] %"
    assert numbers.interval(fs.Estimate(34.0, 3.0, (0.0, 97.0), 9, "", "a reason"), unit=" %") == "34 %, interval n/a (a reason)"


# ---------------------------------------------------------------------- what is read first


def walked(result, sigma, h=2.0, seed=0, directions=40, tilt=0.0):
    """Even responses of two banks along fixed directions whose ln r spreads by a walk of step ``sigma`` toward small radii.

    ``seed`` is of the walk; the directions' own amplitudes are those of seed 0, as common random directions have them.
    """
    x = np.log(np.array(RADII))
    own = 0.3 * np.random.default_rng(0).standard_normal((2, 1, directions))
    steps = np.random.default_rng(seed).standard_normal((2, len(x), directions))
    walk = sigma * np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
    return responding(result, np.exp(own + h * x[:, None] + walk + tilt * own * (x - x[0])[:, None]))


def test_the_columns_of_a_trajectory_lead_with_what_is_read_first(trajectory, spectrum_along):
    section = trajectory.section(spectrum_along)
    rows = section.grids[0].rows
    names = [
        "checkpoint",
        SHARPNESS,
        STABILITY,
        leads.EXPONENT,
        leads.SPREAD,
        leads.C2,
        leads.CHANGE,
        leads.M_TAU,
    ]
    assert list(rows[0])[:8] == names
    assert all(name in section.grids[0].definitions for name in names[1:])
    for row, point, spectrum in zip(rows, trajectory.points, spectrum_along.points, strict=True):
        estimates = point.analysis.estimates
        assert row[leads.EXPONENT] == numbers.cell(estimates["h_mean"])
        assert row[leads.C2] == numbers.cell(estimates["c2"])
        assert row[STABILITY] == numbers.number(spectrum.stability.ratio)
        assert row[SHARPNESS].endswith(numbers.number(spectrum.lambda_max, 4))
    assert trajectory.to_dict()["leads"] == list(leads.lead_rows(trajectory.points))
    assert SHARPNESS not in trajectory.to_dict()["leads"][0]
    assert list(trajectory.to_dict(spectrum_along)["leads"][0]) == names
    header = next(line for line in tables.as_text(trajectory.table(spectrum_along), 400).splitlines() if "c2" in line)
    places = [header.index(name) for name in names]
    assert places == sorted(places)


def test_a_ratio_that_is_a_bound_or_none_is_shown_so(spectrum_along):
    stability = spectrum_along.points[0].stability
    assert stability_text(dataclasses.replace(stability, ratio=math.nan, reason="no steps", at_least=math.nan)) == "n/a"
    assert stability_text(dataclasses.replace(stability, ratio=math.nan, reason="residual", at_least=0.3)) == ">= 0.3"
    assert stability_text(None) == "n/a"


def test_a_word_says_whether_the_spread_over_directions_changes(result):
    falls, rises = walked(result, 0.3), walked(result, 0.0, tilt=0.3)
    assert falls.analysis.estimates["c2"].interval[1] < 0 < rises.analysis.estimates["c2"].interval[0]
    assert leads.change_word(falls.analysis) == "changes with scale: larger at small radii"
    assert leads.change_word(rises.analysis) == "changes with scale: larger at large radii"
    assert leads.change_word(walked(result, 1e-5).analysis) == "does not change with scale"
    assert leads.change_word(responding(result, scaled(result, 40, 0.3)).analysis) == "does not change with scale"
    assert leads.change_word(walked(result, 0.3, directions=8).analysis) == "too few directions"
    summary = falls.summary()
    assert "spread over directions: changes with scale: larger at small radii" in " ".join(summary.replace("│", " ").split())


def test_m_tau_is_named_with_the_orders_that_it_is_of(result):
    found = walked(result, 0.05)
    low, high = found.analysis.supported[0], found.analysis.supported[-1]
    words = leads.m_tau_text(found.analysis)
    assert words == f"{numbers.interval(found.analysis.estimates['m_tau_supported'])} on q {low:g}..{high:g}"
    assert words in found.summary()
    few = walked(result, 0.05, directions=8).analysis
    assert leads.m_tau_text(few) == "n/a (16 directions; moments need 64)"


def test_a_movement_is_claimed_only_where_the_paired_difference_leaves_out_none(result):
    """Common directions: a change of mean h within the two intervals is seen, one within its own noise is not."""
    first = walked(result, 0.05)
    again, moved = walked(result, 0.05, seed=1), walked(result, 0.05, h=2.02, seed=1)
    along = fs.TrajectoryResult((first, again), result.meta).verdict()
    assert "no change of c2, mean h and std h stands out" in along
    assert "goes" not in along
    assert not apart(first.analysis.estimates["c2"], again.analysis.estimates["c2"])
    ends = [numbers.number(point.analysis.estimates["h_mean"].value) for point in (first, moved)]
    assert f"mean h goes {ends[0]} -> {ends[1]}" in fs.TrajectoryResult((first, moved), result.meta).verdict()
    change = leads.changes(first, moved)["h_mean"]
    assert change.value == pytest.approx(moved.analysis.estimates["h_mean"].value - first.analysis.estimates["h_mean"].value)
    other = dataclasses.replace(moved, probe=dataclasses.replace(moved.probe, seed=7))
    assert leads.changes(first, other) == {}


def test_paired_changes_cover_as_often_as_they_say():
    rng, x, hits = np.random.default_rng(5), np.log(np.array(RADII)), {"h_mean": 0, "c2": 0}
    for _ in range(300):
        own = rng.standard_normal((1, 64))
        tables_ = [own + x[:, None] * (2 + 0.1 * rng.standard_normal(64)) for _ in range(2)]
        before, after = (shares(table, x) for table in tables_)
        for name in hits:
            low, high = paired(before[name], after[name]).interval
            hits[name] += low <= 0 <= high
    assert all(0.9 <= count / 300 <= 0.985 for count in hits.values()), hits
    assert paired(np.zeros(31), np.ones(31)).withheld == "31 directions; at least 32"


def test_messages_of_several_checkpoints_are_one_line_each():
    told = [(f"step{index}", f"moments q = -3, {-2 + index / 2:g} are thin, {index} of 12 scales") for index in range(7)]
    told += [("step7", "loss is NaN"), ("step0", "few directions (32)"), ("step1", "few directions (64)")]
    told += [(f"step{index}", f"{64 * index:,} directions support q -1..{index % 2 + 1}") for index in range(1, 4)]
    assert tables.merged(told, 8) == [
        "in 7 of 8 checkpoints: moments q = -3, -2, -1.5, -1, -0.5, 0, 0.5, 1 are thin, 0 .. 6 of 12 scales",
        "step7: loss is NaN",
        "step0, step1: few directions (32 .. 64)",
        "in 3 of 8 checkpoints: 64 .. 192 directions support q -1..1 or -1..2",
    ]
    assert tables.merged([("a", "x of float64 at c2"), ("b", "x of float64 at c2")], 2) == ["all checkpoints: x of float64 at c2"]


def test_flags_of_a_trajectory_repeat_no_message(trajectory):
    lines = multifractal_words.trajectory_flags(trajectory)
    messages = [re.sub(r"[-\d., ]+", "#", line.split(": ", 1)[1]) for line in lines]
    assert len(set(messages)) == len(messages)
    assert len(lines) < sum(len(point.flags) for point in trajectory.points)


def test_every_figure_of_the_page_has_a_caption_and_every_number_a_definition(trajectory, spectrum_along, tmp_path):
    page = write_html(trajectory, tmp_path / "page.html", spectrum=spectrum_along).read_text()
    assert page.count("<figcaption>") == page.count("<figure") == page.count("<svg")
    for name in (
        leads.M_TAU,
        leads.C2,
        leads.EXPONENT,
        STABILITY,
        "p (c2 = 0)",
        "window (decades)",
        "spread ratio",
    ):
        assert f"<dt>{name}</dt><dd>" in page
    top = page[: page.index("<h2>")]
    assert top.index(SHARPNESS) < top.index(STABILITY) < top.index("mean h (2 = smooth bowl)") < top.index("M_tau")
    for draw in figures.CHECKPOINT_FIGURES:
        assert figures.CAPTIONS[draw.__name__].split(":")[0].replace("'", "&#39;").replace(">", "&gt;") in page
    assert "max-width: 40rem" in page
    widths = [float(width) for width in re.findall(r'viewBox="0 0 ([\d.]+) ', page)]
    assert max(widths) <= 72 * 4.7, "one panel each, which a narrow page stacks"


def test_long_titles_are_broken_into_lines_and_not_cut():
    from fastscape.reports.axes import titled

    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    ax = figure.subplots()
    titled(ax, "Loss from runs/resnet18-cifar10-seed0/checkpoint-100000 to runs/resnet18-cifar10-seed1/checkpoint-100000")
    figure.canvas.draw()
    box = ax.title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
