"""Implementations that run every op on every device, and why others do not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from fastscape.ops import _native
from fastscape.ops._registry import OPERATORS


@dataclass(frozen=True)
class Answer:
    """Implementation that runs one op on one device type.

    Attributes:
        op: its name, ``torch.ops.fastscape.<op>``.
        summary: what it computes.
        device: ``"CPU"`` or ``"CUDA"``.
        implementation: ``"C++ (avx2)"``, ``"Triton"``, or ``"reference"`` (plain PyTorch).
        reason: why no kernel answers, or for which arguments it falls back; empty otherwise.
    """

    op: str
    summary: str
    device: str
    implementation: str
    reason: str


@dataclass(frozen=True)
class Status:
    """State of the kernels on this machine; ``str()`` is a table.

    Attributes:
        native: instruction set of the C++ library in use, or empty.
        native_reason: why the library does not answer; empty if it does.
        cuda: name of the CUDA device, or why there is none.
        threads: of torch's pool, which the C++ kernels share.
        answers: one row per op and device type.
        native_forced: whether ``FASTSCAPE_ISA`` chose the instruction set, in place of the best of the processor.
    """

    native: str
    native_reason: str
    cuda: str
    threads: int
    answers: tuple[Answer, ...]
    native_forced: bool = False

    def _native(self) -> str:
        if not self.native:
            return f"not used: {self.native_reason}"
        return self.native + f" (forced by FASTSCAPE_ISA={self.native})" * self.native_forced

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Aligned columns: op, device, implementation, reason."""
        head = [
            f"native library: {self._native()}",
            f"CUDA: {self.cuda}",
            f"threads: {self.threads}",
        ]
        rows = [("op", "device", "answers", "")] + [(a.op, a.device, a.implementation, a.reason) for a in self.answers]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(row[c].ljust(widths[c]) for c in range(3)), row[3]]).rstrip() for row in rows]
        return "\n".join([*head, "", *lines])


def status() -> Status:
    """Tell which implementation answers for every op on CPU and CUDA, and why not another.

    Returns:
        A :class:`Status`; print it, or read its ``answers``.

    Example:
        >>> import fastscape as fs
        >>> {answer.device for answer in fs.status().answers} == {"CPU", "CUDA"}
        True
    """
    library = _native.library
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return Status(
        native=library.isa if library.available else "",
        native_reason=library.reason,
        cuda=cuda,
        threads=torch.get_num_threads(),
        answers=tuple(_answer(name, device) for name in sorted(OPERATORS) for device in ("CPU", "CUDA")),
        native_forced=bool(library.available and library.forced),
    )


def _answer(name: str, device: str) -> Answer:
    operator = OPERATORS[name]
    kernel = operator.kernels.get(device)
    if kernel is None:
        return Answer(name, operator.summary, device, "reference", "no kernel written: PyTorch's own operations serve")
    if kernel.function is None:
        return Answer(name, operator.summary, device, "reference", kernel.reason)
    language = f"{kernel.language} ({_native.library.isa})" if kernel.language == "C++" else kernel.language
    idle = "not in use: no CUDA device" if device == "CUDA" and not torch.cuda.is_available() else ""
    return Answer(name, operator.summary, device, language, "; ".join(part for part in (idle, kernel.limits) if part))
