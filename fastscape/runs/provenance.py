"""When, with which versions and on how many threads a run was made."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import Any

import numpy as np
import scipy
import torch

from fastscape._version import __version__


def provenance() -> dict[str, Any]:
    """What the ``meta`` of every result says of its run: ``created``, ``versions``, ``threads``."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "fastscape": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }
