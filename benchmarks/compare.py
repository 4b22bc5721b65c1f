"""Markdown from benchmark files: ``compare.py OLD.json NEW.json`` prints a table of what became faster or slower.

Reads the files that ``make bench`` writes. Every row is one rival of one table; the change is the ratio of its time relative
to the table's baseline, which ran interleaved with it: a busier machine slows both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def tables(path: Path) -> list[dict]:
    """The recorded tables of a pytest-benchmark file, or of a list of tables."""
    content = json.loads(path.read_text())
    if isinstance(content, list):
        return content
    return [table for entry in content["benchmarks"] for table in entry["extra_info"].get("tables", ())]


def comparison(old: list[dict], new: list[dict]) -> str:
    """Markdown table of the rows that both have."""
    before = {(t["title"], t["threads"], name): row for t in old for name, row in t["rows"].items()}
    lines = ["| benchmark | threads | rival | old ratio | new ratio | change |", "|---|---|---|---|---|---|"]
    for table in new:
        for name, row in table["rows"].items():
            was = before.get((table["title"], table["threads"], name))
            if was is None or name == table["baseline"]:
                continue
            change = row["ratio"] / was["ratio"] if was["ratio"] else float("nan")
            cells = (table["title"], table["threads"], name, f"{was['ratio']:.2f}", f"{row['ratio']:.2f}", f"{change:.2f}x")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args()
    print(comparison(tables(arguments.old), tables(arguments.new)))


if __name__ == "__main__":
    main()
