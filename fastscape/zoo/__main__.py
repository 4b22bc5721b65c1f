"""Train a zoo model on the command line: ``python -m fastscape.zoo zoo:cnn zoo:digits --out checkpoints``."""

from __future__ import annotations

from pathlib import Path

import click

from fastscape._checks import counted
from fastscape.zoo.specs import DATA, MODELS, build
from fastscape.zoo.train import train


@click.command()
@click.argument("model")
@click.argument("data")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Directory for the checkpoints.")
@click.option("--steps", default=300, show_default=True, help="Optimiser steps.")
@click.option("--checkpoints", default=8, show_default=True, help="How many, at log-spaced steps.")
@click.option("--seed", default=0, show_default=True, help="Of the initial weights and the minibatches.")
def main(model: str, data: str, out: Path, steps: int, checkpoints: int, seed: int) -> None:
    """Train MODEL on DATA by Adam and write log-spaced checkpoints."""
    try:
        network, batches = build(model, "MODEL", MODELS, seed=seed), build(data, "DATA", DATA)
        losses: list[float] = []
        files = train(
            network,
            batches,
            out,
            steps=steps,
            checkpoints=checkpoints,
            seed=seed,
            progress=lambda _, loss: losses.append(loss),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"{counted(len(files), 'checkpoint')} in {out}; minibatch loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
