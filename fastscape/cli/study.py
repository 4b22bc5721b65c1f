"""``fastscape study``: architectures compared, several seeds of each, on one page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscape._interrupts import Interrupts
from fastscape.cli.folder import check_out, force_option
from fastscape.cli.output import Outcome, live_progress, run

if TYPE_CHECKING:
    from fastscape.study.plan import Plan

ARCHITECTURES = ["mlp", "resnet-18", "tiny-transformer"]  # of fastscape.study.plan


@click.command("study")
@click.option("--quick", "is_quick", is_flag=True, help="Digits and narrow networks: minutes on two cores instead of hours.")
@click.option("--seeds", type=click.IntRange(1), help="Runs of each architecture; default 3 with --quick, else 5.")
@click.option("--architecture", "architectures", multiple=True, type=click.Choice(ARCHITECTURES), help="Only these; repeatable.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for the probes of one state; default 8 with --quick, else 300; use more on a busy machine.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("study"),
    show_default=True,
    help="Directory for study.html, study.npz, study.json and the runs.",
)
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of the tables.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def study_command(
    is_quick: bool,
    seeds: int | None,
    architectures: tuple[str, ...],
    seconds: float | None,
    out: Path,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train an MLP, a ResNet-18 and a tiny Transformer with several seeds each, and compare the geometry of their losses.

    Early signatures, slices, spectra, normalised sharpness, barriers between seeds, temperature, optimisation difficulty and
    warnings, each with its interval; which claims of the paper were reproduced; and whether early signals predict outcomes.
    Runs that are complete in --out are not repeated: re-running the command resumes. Those of another study are not replaced
    without --force.

    Exit codes: 0 done, 2 bad input, 130 interrupted (what was done is saved).
    """

    def work(interrupts: Interrupts) -> Outcome:
        return _study(_plan(is_quick, seeds, architectures, seconds), out, interrupts, force=force, quiet=quiet)

    run(work, out, as_json=as_json)


def _plan(is_quick: bool, seeds: int | None, architectures: tuple[str, ...], seconds: float | None) -> Plan:
    from fastscape.study import plan as plans

    make: Any = plans.quick if is_quick else plans.full
    plan: Plan = make() if seeds is None else make(seeds)
    if architectures:
        plan = plan.only(architectures)
    return plan if seconds is None else dataclasses.replace(plan, seconds=seconds)


def _study(plan: Plan, out: Path, interrupts: Interrupts, *, force: bool, quiet: bool) -> Outcome:
    from fastscape.study.study import is_of, study

    check_out(out, ["study"], force=force, continues=lambda: is_of(out / "study.npz", plan))
    with live_progress(quiet=quiet) as live:
        result = study(plan, out, progress=live.show)
        interrupts.hold()
    return Outcome({"study": result})
