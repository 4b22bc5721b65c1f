"""What a probe has evaluated, in a journal: the probe runs again from its start, and takes what is done instead of doing it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fastscape._checks import counted
from fastscape._clock import now
from fastscape._files import replaced
from fastscape._state import torch_threads
from fastscape.objective.objective import Objective
from fastscape.objective.structures import raw_bytes
from fastscape.runs.folder import RunFolder, settle
from fastscape.runs.plan import identity, other_loss, plain_data, versions
from fastscape.runs.provenance import provenance
from fastscape.runs.record import decoded, encoded

Value = dict[str, Any]  # tensors, arrays and JSON data by name
_SMALL = 1 << 16  # bytes of a value above which it has a file of its own
_FILE = re.compile(r"(?P<key>[a-z0-9-]+\.[0-9a-f]{32})\.(?P<check>[0-9a-f]{8})\.safetensors")


class EvaluationJournal(RunFolder):
    """Values of evaluations by what was asked, in a folder: small ones in lines, large ones in files of their own.

    A process that is killed loses the evaluation that it was at; a machine that fails, at most those of the last second too.

    Attributes:
        left: keys of what was found and not asked for yet.
        hit: whether what was asked for last was there.
        seconds: that evaluations took which were taken and not made.
        inside: whether an evaluation is being made.
    """

    kind, stem = "fastscape evaluations", "evaluations"

    def __init__(self, folder: str | Path) -> None:
        self._lines: dict[str, Mapping[str, Any]] = {}
        self._files: dict[str, list[tuple[Path, int]]] = {}
        self._unsynchronised: list[Path] = []
        self._lost, self._error = 0, ""
        self.hit, self.inside, self.seconds = True, False, 0.0
        super().__init__(folder)
        for path in sorted(self.folder.glob("*.safetensors")):
            if found := _FILE.fullmatch(path.name):
                self._files.setdefault(found["key"], []).append((path, int(found["check"], 16)))
        self.left = {*self._lines, *self._files}

    def begin(self, manifest: Mapping[str, Any], compared: Sequence[str]) -> None:
        """See :class:`RunFolder`; removes what a killed process was writing."""
        super().begin(manifest, compared)
        for path in self.folder.glob(".*.safetensors.*.tmp"):
            path.unlink(missing_ok=True)

    def find(self, key: str) -> Value | None:
        """The value of what was asked; ``None`` where there is none, or it is damaged."""
        found = self._from_line(key) if key in self._lines else self._from_files(key)
        self.hit, earlier = found is not None, key in self.left
        self.left.discard(key)
        if found is None:
            return None
        value, seconds = found
        self.seconds += seconds if earlier else 0.0
        return value

    def keep(self, key: str, value: Value, seconds: float) -> Value:
        """Write a value; gives it as :meth:`find` would, tensors on their device."""
        tensors, data, arrays, orders = _split(value)
        plain = json.loads(json.dumps(encoded(data), allow_nan=False))
        if not tensors:
            self._write_line(key, {"data": plain}, seconds)
        else:
            words = {"seconds": seconds, "data": plain, "arrays": arrays, "orders": orders}
            blob = save({name: part.cpu() for name, part in tensors.items()}, {"fastscape": json.dumps(words)})
            if len(blob) <= _SMALL:
                self._write_line(key, {"blob": base64.b64encode(blob).decode()}, seconds)
            else:
                self._write(key, blob, seconds)
        return _joined(tensors, decoded(plain), arrays, orders)

    def close(self) -> None:
        """See :class:`RunFolder`."""
        super().close()
        self._settle()

    @property
    def note(self) -> str:
        """What could not be written, in words; empty where all was."""
        lines = super().note
        files = (
            f"the journal lacks what the disk refused: {counted(self._lost, 'evaluation')} ({self._error})" if self._lost else ""
        )
        return "; ".join(filter(None, (lines, files)))

    # ------------------------------------------------------------------ private

    def _take(self, line: Mapping[str, Any]) -> None:
        if isinstance(line.get("key"), str) and ("data" in line or "blob" in line):
            self._lines[line["key"]] = line
        else:
            self.torn += 1

    def _from_line(self, key: str) -> tuple[Value, float] | None:
        line = self._lines[key]
        if "data" in line:
            return dict(line["data"]), float(line["seconds"])
        try:
            return _unpacked(base64.b64decode(line["blob"], validate=True))
        except (binascii.Error, ValueError, KeyError, TypeError, SafetensorError):
            self.torn += 1
            return None

    def _from_files(self, key: str) -> tuple[Value, float] | None:
        for path, check in self._files.get(key, ()):
            try:
                blob = path.read_bytes()
                if zlib.crc32(blob) == check:
                    return _unpacked(blob)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError):
                pass
            self.torn += 1
        return None

    def _write_line(self, key: str, content: Mapping[str, Any], seconds: float) -> None:
        line = {"key": key, "seconds": seconds, **content}
        self._lines[key] = decoded(line)
        self._append(line, seconds)

    def _write(self, key: str, blob: bytes, seconds: float) -> None:
        """Write a file whole or not at all; what the disk refuses is not kept, and evaluated again by the next run."""
        check, due = zlib.crc32(blob), self._due(seconds)
        path = self.folder / f"{key}.{check:08x}.safetensors"
        try:
            with replaced(path, sync=due) as stream:
                stream.write(blob)
        except OSError as error:
            self._lost, self._error = self._lost + 1, str(error)
            return
        self._files[key] = [(path, check)]
        if due:
            self._settle()
        else:
            self._unsynchronised.append(path)

    def _settle(self) -> None:
        while self._unsynchronised:
            settle(self._unsynchronised.pop())


class Evaluations:
    """Evaluations of a probe, or of a part of it, taken from a journal where they are there; without one, all are made.

    A probe whose control flow follows from its arguments and its evaluations gives, from a journal of part of these, the bits
    of a run that nothing disturbed: its code runs from the start, and what is done costs only reading. A value is found by
    *all that was asked* (place, kind, request), so that another request, after a change of settings say, finds nothing.

    What was chosen by a clock or by free memory is an evaluation too.

    Args:
        journal: of the run; ``None`` for none.
        place: of this part: index of a checkpoint, a batch ...
    """

    def __init__(self, journal: EvaluationJournal | None = None, place: Sequence[Any] = ()) -> None:
        self.journal, self._place = journal, tuple(place)

    def of(self, *place: Any) -> Evaluations:
        """The evaluations of a part, such as a checkpoint, which are apart from those of others."""
        return Evaluations(self.journal, (*self._place, *place))

    def taken(self, kind: str, request: Sequence[Any], make: Callable[[], Value], *, always: bool = False) -> Value:
        """The value of an evaluation: that in the journal, or what ``make`` returns, which is written before it is given.

        What is asked within ``make`` is part of its value, and not written beside it unless ``always``.

        Args:
            kind: a word or two, ``[a-z0-9 ]``, that name the file.
            request: all that the value depends on beside the manifest: tensors, arrays and JSON data, nested at will.
            make: evaluates; its value has names for tensors, arrays and JSON data. Numbers of NumPy are arrays, not JSON.

        Returns:
            The value, with lists for tuples; tensors from the journal are on the processor, in the memory layout that they had.

        Cost: a SHA-256 of the request; bytes of the value on disk, tensors as they are (D K numbers for a product of K vectors).
        """
        journal = self.journal
        if journal is None or (journal.inside and not always):
            return make()
        key = f"{kind.replace(' ', '-')}.{digest([*self._place, kind, request])}"
        found = journal.find(key)
        if found is not None:
            return found
        outer, journal.inside = journal.inside, True
        began = now()
        try:
            value = make()
        finally:
            journal.inside = outer
        return journal.keep(key, value, now() - began)

    @property
    def replaying(self) -> bool:
        """Whether the next evaluation is likely to be in the journal, so that no deadline keeps it from being taken."""
        return self.journal is not None and self.journal.hit and bool(self.journal.left)

    @property
    def seconds(self) -> float:
        """Seconds that all evaluations took which were taken and not made."""
        return 0.0 if self.journal is None else self.journal.seconds

    def same_loss(self, loss: float) -> float:
        """L(w) as it was first evaluated, every bit of it; it is of no fingerprint.

        Raises:
            ValueError: it is that of another loss function.
        """
        found = float(self.taken("loss", (), lambda: {"loss": loss}, always=True)["loss"])
        if self.journal is not None and other_loss(found, loss):
            self.journal.refuse("loss function")
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the journal, and what it lacks, in words."""
        if self.journal is None:
            return ()
        torn = self.journal.torn
        left = f"{counted(torn, 'evaluation')} torn or changed in the journal, and done again" if torn else ""
        return tuple(filter(None, (left, self.journal.note)))


@contextmanager
def opened(
    folder: str | Path | None, kind: str, points: Sequence[Callable[[], Objective]], settings: Mapping[str, Any]
) -> Iterator[Evaluations]:
    """The evaluations of a run for a block, in a folder that is new or that of the same run; all are made without a folder.

    Args:
        folder: ``resume=`` of the probe.
        kind: name of the probe's function, which the next call must be of.
        points: the objective at each checkpoint.
        settings: in which the next call must not differ, as JSON data: the seed, the matrix ... Of others (budget, targets,
            numbers of things) what fits is taken.

    Raises:
        TypeError, ValueError: a folder that is none, or that of another run, by what differs: weights, data, settings ...
        InUseError: another process writes to it.
    """
    if folder is None:
        yield Evaluations()
        return
    journal = EvaluationJournal(folder)
    try:
        objectives = [point() for point in points]
        about = {
            "kind": kind,
            "settings": plain_data(settings),
            "identities": [identity(objective) for objective in objectives],
            "versions": {name: value for name, value in versions().items() if name != "instructions"},
            "device": [objective.device.type for objective in objectives],
            "threads": torch.get_num_threads(),
            "created": provenance()["created"],
        }
        journal.begin(about, ("kind", "settings", "identities", "versions", "device"))
        with torch_threads(int(journal.manifest["threads"])):
            yield Evaluations(journal)
    finally:
        journal.close()


# ---------------------------------------------------------------------- bytes


def digest(value: Any) -> str:
    """128 bits of the SHA-256 of tensors, arrays and JSON data, nested at will: of their numbers, shapes and dtypes."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()[:32]


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value, order="C"))  # a copy, whose strides are those of its shape
    if isinstance(value, Tensor):
        order = _order(value)
        found.update(f"tensor {value.dtype} {list(value.shape)} {order} ".encode())
        for part in raw_bytes(value.detach().permute(order)):
            found.update(part)
    elif isinstance(value, Mapping):
        _feed(found, sorted((str(name), item) for name, item in value.items()))
    elif isinstance(value, (list, tuple)):
        found.update(f"list {len(value)} ".encode())
        for item in value:
            _feed(found, item)
    else:
        found.update(f"{json.dumps(encoded(value))} ".encode())


def _order(tensor: Tensor) -> list[int]:
    """Dimensions from the slowest in memory to the fastest."""
    return sorted(range(tensor.ndim), key=lambda dim: -tensor.stride()[dim])


def _split(value: Value) -> tuple[dict[str, Tensor], Value, list[str], dict[str, list[int]]]:
    """Tensors with their dimensions as they lie in memory, other data, which are arrays, and the orders of dimensions."""
    tensors: dict[str, Tensor] = {}
    arrays = [name for name, item in value.items() if isinstance(item, np.ndarray)]
    orders: dict[str, list[int]] = {}
    for name, item in value.items():
        if isinstance(item, (Tensor, np.ndarray)):
            tensor = item.detach().resolve_conj().resolve_neg() if isinstance(item, Tensor) else torch.from_numpy(np.array(item))
            orders[name] = _order(tensor)
            dense = tensor.permute(orders[name])
            tensors[name] = dense.reshape(-1).contiguous().reshape(dense.shape)  # where a dimension of one has another stride too
    return tensors, {name: item for name, item in value.items() if name not in tensors}, arrays, orders


def _joined(tensors: Mapping[str, Tensor], data: Value, arrays: Sequence[str], orders: Mapping[str, Sequence[int]]) -> Value:
    value = dict(data)
    for name, tensor in tensors.items():
        whole = tensor.permute([orders[name].index(dim) for dim in range(tensor.ndim)])
        value[name] = whole.numpy() if name in arrays else whole
    return value


def _unpacked(blob: bytes) -> tuple[Value, float]:
    """A value, and the seconds that it took; its tensors in memory of torch's own, whose alignment decides last bits."""
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    words = json.loads(header["__metadata__"]["fastscape"])
    tensors = {name: tensor.clone() for name, tensor in load(blob).items()}
    return _joined(tensors, decoded(words["data"]), words["arrays"], words["orders"]), float(words["seconds"])
