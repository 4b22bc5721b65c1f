"""Copies of a model that hold no weights: every module gets its own when it asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from fastscape.objective.batches import Batch, fitted_dtype, placed
from fastscape.objective.definition import Definition
from fastscape.objective.on_use import Store, pinned
from fastscape.objective.private_copy import private_copy
from fastscape.objective.replica import Fill, Replica, _LossModule, same_bits
from fastscape.objective.write_guard import SharedWriteError, WriteGuard, address

_ALIGNED = 64  # bytes: on memory that is aligned less than torch's own, kernels may round otherwise


class StreamedReplica(Replica):
    """A copy of an objective's model in one dtype whose parameters are made as the forward asks for them, and dropped after.

    They have the numbers and the layouts of a :class:`Replica`'s, and so give its bits. Parameters that modules hold elsewhere
    too, as recurrent layers do, are kept. It is for models that :func:`fastscape.objective.on_use.unfit` allows, and whose
    forward writes into none of their parameters.

    Memory: the parameters of the largest module, and what else the forward has in hand at a time.
    """

    def __init__(self, objective: Definition, dtype: torch.dtype) -> None:
        self.objective, self.dtype = objective, dtype
        self._positions = {name: index for index, name in enumerate(objective.names)}
        self._held = dict(objective.model.named_parameters())
        self._fill: Fill | None = None
        self._change: Callable[[int, Tensor], object] | None = None
        self._store, self._kept = Store(self._made), dict[str, Tensor]()
        self._begin()
        elsewhere = pinned(objective.model)

        def data(name: str, source: Tensor) -> Tensor:
            if id(self._held[name]) in elsewhere:
                self._kept[name] = self._made(name)
                return self._kept[name]
            return torch.empty_like(source, dtype=fitted_dtype(source.dtype, dtype), device="meta")

        model = private_copy(objective, dtype, data)
        self.module = _LossModule(model, objective, dtype, frozenset())
        self.batches = [placed(batch, objective.device, dtype) for batch in objective.batches]
        held = dict(model.named_parameters())
        self._store.take(model, {name: parameter for name, parameter in held.items() if name not in self._kept})
        sources = [self._source(name) for name in held if name not in self._positions]
        self._still = [source for source in sources if self._is_fitting(source)]

    # ------------------------------------------------------------------ weights

    def reset(self) -> None:
        """Take the unperturbed weights."""
        self._take(None)

    def fill(self, write: Fill) -> None:
        """See :meth:`Replica.fill`; ``write`` is called as parameters are used, until the next call."""
        self._take(write)

    def alter(self, change: Callable[[int, Tensor], object]) -> None:
        """See :meth:`Replica.alter`; until the weights are filled again."""
        self._change = change
        self._store.forget()
        for name in self._kept.keys() & self._positions.keys():
            change(self._positions[name], self._kept[name])

    def _take(self, write: Fill | None) -> None:
        self._fill, self._change = write, None
        self._store.forget()
        for name in self._kept.keys() & self._positions.keys():
            self._write(name, self._kept[name])

    def _source(self, name: str) -> Tensor:
        """The user's tensor."""
        state = self.objective.state or {}
        return state.get(name, self._held[name]).detach()

    def _is_fitting(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device and in the dtype of the evaluation."""
        return (tensor.device, tensor.dtype) == (self.objective.device, fitted_dtype(tensor.dtype, self.dtype))

    def _base(self, name: str) -> Tensor:
        """The unperturbed weights, as the objective rounds those that are probed."""
        source = self._source(name)
        return source.to(self.objective.device, self.objective.dtype) if name in self._positions else source

    def _slot(self, name: str) -> Tensor:
        """Memory for a parameter in the layout of the user's."""
        held = self._held[name]
        dtype = fitted_dtype(held.dtype, self.dtype)
        return torch.empty_like(held, device=self.objective.device, dtype=dtype, requires_grad=False)

    def _write(self, name: str, slot: Tensor) -> None:
        base = self._base(name)
        with _disable_current_modes():  # what follows the forward is not to follow this
            if self._fill is None or name not in self._positions:
                slot.copy_(base)
            else:
                self._fill(self._positions[name], slot, base)
            if self._change is not None and name in self._positions:
                self._change(self._positions[name], slot)

    def _made(self, name: str) -> Tensor:
        """Numbers of a parameter; those that are not probed are the user's own where dtype and device allow."""
        source = self._source(name)
        if name not in self._positions and self._is_fitting(source):
            return source
        slot = self._slot(name)
        self._write(name, slot)
        return slot

    # ------------------------------------------------------------------ evaluation

    @contextmanager
    def noted(self, note: Callable[[Tensor], object]) -> Iterator[None]:
        """See :meth:`Replica.noted`."""
        pair = self.criterion
        for tensor in (*self._kept.values(), *(pair.parameters() if isinstance(pair, nn.Module) else ())):
            note(tensor)
        self._store.note = note
        self._store.forget()
        try:
            yield
        finally:
            self._store.note = None

    def another(self) -> Replica:
        """See :meth:`Replica.another`."""
        return StreamedReplica(self.objective, self.dtype)

    def _forward(self, index: int, batch: Batch) -> tuple[Tensor, Tensor | None]:
        try:
            return super()._forward(index, batch)
        finally:
            self._store.drop()


class StillReplica(StreamedReplica):
    """A copy for evaluations at w alone: parameters are the user's own tensors where dtype, device and layout allow.

    Raises:
        SharedWriteError: from an evaluation that is about to write into one of them; nothing has been written.

    Memory: none for parameters that need no cast.
    """

    def __init__(self, objective: Definition, dtype: torch.dtype) -> None:
        self.objective, self.dtype, self._positions = objective, dtype, dict.fromkeys(objective.names, 0)
        self._held = dict(objective.model.named_parameters())
        alike = (name for name, tensor in self._held.items() if tensor.numel() and self._is_alike(name, tensor))
        self._own = {name: self._source(name) for name in alike}
        self._places = {address(tensor): name for name, tensor in self._own.items()}
        super().__init__(objective, dtype)

    def fill(self, write: Fill) -> None:
        """Not for weights other than w."""
        raise NotImplementedError(write)

    def reset(self) -> None:
        """Nothing moves."""

    def _made(self, name: str) -> Tensor:
        return self._own[name] if name in self._own else super()._made(name)

    def _is_alike(self, name: str, held: Tensor) -> bool:
        """Whether kernels see in the user's tensor what they would in a copy."""
        source = self._source(name)
        if source.dtype != self.objective.dtype and name in self._positions:
            return False  # it is rounded first
        strides = torch.empty_like(held, device="meta").stride()
        return self._is_fitting(source) and strides == source.stride() and source.data_ptr() % _ALIGNED == 0

    def _forward(self, index: int, batch: Batch) -> tuple[Tensor, Tensor | None]:
        with WriteGuard(_refuse, self._places):
            return super()._forward(index, batch)


def _refuse(name: str) -> None:
    raise SharedWriteError(f"the forward must leave the parameter {name!r} alone while it is shared with the user's model")


class SeenReplica(StreamedReplica):
    """A copy at w that tells which parameters a forward writes into: what it makes is never the user's.

    Attributes:
        written: their names.
    """

    def __init__(self, objective: Definition, dtype: torch.dtype) -> None:
        self._places: dict[int, str] = {}
        self.written: set[str] = set()
        super().__init__(objective, dtype)
        self._still = []
        self._store.dropped = self._look

    def _made(self, name: str) -> Tensor:
        slot = self._slot(name)
        self._write(name, slot)
        self._places[address(slot)] = name
        return slot

    def get(self, place: int, _: object = None) -> str | None:
        """The parameter at an address, if it is still there: as the guard asks for it."""
        name = self._places.get(place)
        here = None if name is None else self._kept.get(name, self._store.alive(name))
        return name if here is not None and address(here) == place else None

    def _look(self, name: str, tensor: Tensor) -> None:
        """Compare a parameter with what was made, since NumPy writes unseen."""
        if not same_bits(tensor.detach(), self._base(name).to(tensor.device, tensor.dtype)):
            self.written.add(name)

    def _forward(self, index: int, batch: Batch) -> tuple[Tensor, Tensor | None]:
        with WriteGuard(self.written.add, self):
            found = super()._forward(index, batch)
        for name, tensor in self._kept.items():
            self._look(name, tensor)
        return found
