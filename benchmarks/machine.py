"""The machine that a benchmark ran on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from fastscape.ops import _native


def machine() -> str:
    """Processor, instruction set and versions, without the host's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, native library: {_native.library.isa or 'off'}, torch {torch.__version__}, no GPU."
