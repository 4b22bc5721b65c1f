"""Damaged and hostile files: each is read, printed, saved as JSON and put on a page, with the peak of memory while it is."""

from __future__ import annotations

import tempfile
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from hostile import ROOM, SAVED, files, model, read, shown
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.reports.html import write_html

PAGES = 10  # of so many results that load, one is put on a page: figures take a second


def trial(count: int, seed: int) -> dict[str, Any]:
    """Counts of so many files; memory is what Python and NumPy allocate, 8 MiB of which need not depend on the file."""
    found, failures, most = Counter[str](), [], 0.0
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        (folder / "whole").mkdir()
        fs.load(SAVED / "study.npz").summary()
        torch.ones(1).sum()
        objective = fs.Objective(model(), zoo.digits(samples=8), criterion=F.cross_entropy)
        for index, file in enumerate(files(count, seed, folder / "whole")):
            path = folder / f"{index}-{file.name}"
            path.write_bytes(file.content)
            result, error = None, None
            tracemalloc.start()
            try:
                result = read(path, objective)
            except Exception as raised:
                error = raised
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            found["tried"] += 1
            share = peak / (2 * file.declared + ROOM)
            most = max(most, share)
            if share > 1:
                failures.append(f"{path.name}, {file.damage}: {peak} bytes for a file that declares {file.declared}")
            if error is None:
                found["read"] += 1
                if path.suffix == ".npz":
                    found["results shown"] += 1
                    failures += _shown(result, path, page=found["results shown"] % PAGES == 0)
            elif not isinstance(error, (ValueError, OSError)) or path.name not in str(error):
                failures.append(f"{path.name}, {file.damage}: {type(error).__name__}: {error}")
            else:
                found["refused by name"] += 1
            path.unlink()
    found["largest share of the allowed memory, %"] = round(100 * most)
    return {"tried": found["tried"], "failed": len(failures), "counts": dict(found), "failures": failures[:50]}


def _shown(result: Any, path: Path, *, page: bool) -> list[str]:
    try:
        shown(result)
        if page:
            write_html(result, path.with_suffix(".html"))
            path.with_suffix(".html").unlink()
    except Exception as error:
        return [f"{path.name}: it loads, and cannot be shown: {type(error).__name__}: {error}"]
    return []
