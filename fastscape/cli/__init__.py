"""The command line: results on stdout, progress on stderr.

Its modules import torch, and what needs it, when a command runs: help and completion are there at once.
"""

from __future__ import annotations

import click

from fastscape.cli import (
    barrier,
    bench,
    critical,
    diagonal,
    doctor,
    merge,
    multifractal,
    report,
    run,
    slice,
    spectrum,
    status,
    study,
    trace,
)


@click.group()
@click.version_option(package_name="fastscape-probes", prog_name="fastscape")
def main() -> None:
    """Measure the geometry of a neural network's loss."""


for command in (
    status.show_status,
    doctor.doctor_command,
    bench.bench_command,
    run.run_command,
    multifractal.multifractal_command,
    multifractal.probe_command,
    spectrum.spectrum_command,
    slice.slice_command,
    critical.critical_command,
    diagonal.diagonal_command,
    trace.trace_command,
    study.study_command,
    barrier.barrier_command,
    merge.merge_command,
    report.report,
):
    main.add_command(command)
