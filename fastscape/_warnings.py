"""Filters of warnings for one thread: the list of filters is one for the process, also under ``warnings.catch_warnings``."""

from __future__ import annotations

import re
import threading
import warnings
from typing import Any, Literal

from fastscape._interrupts import Restoring
from fastscape._settings import Later

_filters: Any = warnings


class _OfThread:
    """A pattern that matches in the thread it was made in; the list of filters asks for ``match`` alone."""

    def __init__(self, message: str) -> None:
        self._thread, self._pattern = threading.get_ident(), re.compile(message, re.IGNORECASE)

    def match(self, text: str) -> bool:
        return threading.get_ident() == self._thread and self._pattern.match(text) is not None


class filtered_warnings(Restoring):  # noqa: N801 - a block, as contextlib's
    """Warnings whose message begins with a pattern are ignored, or raised as errors, in this thread."""

    def __init__(self, *messages: str, action: Literal["ignore", "error"] = "ignore", category: type[Warning] = Warning) -> None:
        self._messages, self._action, self._category = messages or ("",), action, category

    def _begin(self, later: Later) -> bool:
        changed = getattr(_filters, "_filters_mutated", lambda: None)  # so that what was shown once is looked at again
        later(changed)
        for message in self._messages:
            item = (self._action, _OfThread(message), self._category, None, 0)
            later(lambda item=item, first=_filters.filters: _remove(item, first))  # type: ignore[misc]
            _filters.filters.insert(0, item)
        changed()
        return True


def _remove(item: Any, first: list[Any]) -> None:
    """Take a filter off the list it was put on, and off the copy that another thread may have put in its place."""
    for filters in (first, _filters.filters):
        if item in filters:
            filters.remove(item)
