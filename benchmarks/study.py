"""Tables of the README from a study that ``fastscape study --quick --out study`` has left: ``results/study.json``.

Source of the claims: Venkatasubramanian, "Loss Landscape Geometry & Optimization Dynamics in Deep Neural Architectures" (2025).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import readme

import fastscape as fs
from fastscape.study.view import associations_grid, outcomes_grid, table1

HERE = Path(__file__).parent
_LEFT_OUT = ("D", "tr/D", "halved after", "p", "tau", "note")


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A table of named cells."""
    names = [name for name in rows[0] if name not in _LEFT_OUT]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row[name] for name in names) + " |" for row in rows])


def main() -> None:
    result = fs.load(sys.argv[1] if len(sys.argv) > 1 else "study/study.npz")
    claims = [{"the source says": each.claim, "here": each.outcome, "evidence": each.evidence} for each in result.claims()]
    seeds = max(len(result.of(name)) for name in result.architectures)
    parts = [
        table1(result).caption + f" ({seeds} seeds):",
        markdown([dict(row) for row in table1(result).rows]),
        outcomes_grid(result).caption + ":",
        markdown([dict(row) for row in outcomes_grid(result).rows]),
        result.verdict(),
        markdown(claims),
        "H5, early signals against outcomes: rank correlations within architectures [95 %]:",
        markdown([dict(row) for row in associations_grid(result).rows]),
    ]
    document = {"markdown": "\n\n".join(parts), "meta": result.meta, "plan": result.plan}
    (HERE / "results" / "study.json").write_text(json.dumps(document, indent=1) + "\n")
    readme.refresh()


if __name__ == "__main__":
    main()
