"""Warnings that are shown once, at a moment when nothing is left undone."""

from __future__ import annotations

import warnings


class TrackerWarning(UserWarning):
    """Something in tracking failed; training continues, and the record says what is missing."""


class WarningsOnce:
    """Collects what is to be warned of, one message per topic."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._waiting: list[str] = []

    def add(self, topic: str, words: str) -> None:
        """Take in a message, unless its topic had one."""
        if topic not in self._said:
            self._said.add(topic)
            self._waiting.append(words)

    def say(self, stacklevel: int) -> None:
        """Show what was collected; where warnings are errors, the first raises and the rest is shown next time."""
        while self._waiting:
            warnings.warn(self._waiting.pop(0), TrackerWarning, stacklevel=stacklevel)
