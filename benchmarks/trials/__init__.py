"""Trials of `make reliability`: threads, instants, files and inputs; each gives the counts of what it tried and what failed."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # the tests' generator of files, states and injector are those of the trials
