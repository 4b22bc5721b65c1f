"""Second front end: tensors that carry their lanes through a model that is simply called.

``__torch_dispatch__`` sees every operation below autograd and hands it to the same rules as a traced program. Nothing is
recorded, so a model may branch, and use shapes, as it likes; decisions of the host are taken at w and counted. Composite
operations arrive in pieces (a linear layer as a transposed product, cross-entropy as log_softmax and nll_loss), which costs time,
and writing in place through views cannot be followed. It serves models that cannot be traced, and as an independent check of
those that can.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map

from fastscape._checks import first_line
from fastscape.differences import collapsed
from fastscape.differences.program import HOST, Called, decomposition, functional_form
from fastscape.differences.propagation import MissingRuleError, as_values, plain, propagated
from fastscape.differences.rules.table import RULES, moves
from fastscape.differences.tracing_errors import UntraceableError, check_transform
from fastscape.differences.triple import Decision, Frame, Moved, Triple, seeded


class AliasedWriteError(UntraceableError):
    """A model writes in place into memory that another tensor looks at; the message names the operation."""


class Carrier(Tensor):
    """A tensor at w that carries lanes, or a decision, through a model.

    Attributes:
        value: the triple or decision.
        frame: of the propagation.
        family: weak references to all tensors that share its memory.
    """

    value: Triple | Decision
    frame: Frame
    family: list[weakref.ref[Carrier]]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls: type[Carrier], value: Triple | Decision, frame: Frame, family: list[weakref.ref[Carrier]] | None = None
    ) -> Carrier:
        """Wrap a value; ``family`` is that of the tensor it is a view of."""
        x = value.x
        carrier: Carrier = torch.Tensor._make_wrapper_subclass(
            cls, x.shape, strides=x.stride(), dtype=x.dtype, device=x.device, requires_grad=False
        )
        carrier.value, carrier.frame = value, frame
        carrier.family = [] if family is None else family
        carrier.family.append(weakref.ref(carrier))
        return carrier

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Carrier({self.value.x})"

    @classmethod
    def __torch_dispatch__(cls, target: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:  # type: ignore[override]
        """Apply the rule of an operation."""
        check_transform(target)
        keywords = keywords or {}
        frame = next(leaf.frame for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Carrier))
        if target._schema.is_mutable and target not in RULES:
            return _written(target, arguments, keywords)
        name = target._schema.name.split("::")[1]
        if target not in RULES and name not in HOST:
            apart = decomposition(target)
            if apart is not None:
                return apart(*arguments, **keywords)
        base = as_values(target(*_at_w(arguments), **_at_w(keywords)))
        values, options = _unwrapped(arguments), _unwrapped(keywords)
        result = propagated(frame, target, base, values, options)
        if name in HOST:
            return plain(result)
        return _wrapped(frame, target, result, arguments)


def _unwrapped(values: Any) -> Any:
    """Triples and decisions in place of tensors, as the rules take them."""
    return tree_map(lambda leaf: leaf.value if isinstance(leaf, Carrier) else as_values(leaf), values)


def _at_w(values: Any) -> Any:
    return tree_map(lambda leaf: leaf.value.x if isinstance(leaf, Carrier) else leaf, values)


def _wrapped(frame: Frame, target: Any, result: Any, arguments: Any) -> Any:
    """Carriers in place of what moves; views join the family of what they look at."""
    views = any(out.alias_info is not None for out in target._schema.returns)
    source = arguments[0] if arguments else None
    family = source.family if views and isinstance(source, Carrier) else None

    def wrap(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [wrap(part) for part in value]
        return Carrier(value, frame, family) if moves(value) else plain(value)

    wrapped = wrap(result)
    return tuple(wrapped) if len(target._schema.returns) > 1 else wrapped


def _written(target: Any, arguments: Any, keywords: Any) -> Any:
    """Writing in place: the functional form, whose result the written tensor carries from then on."""
    name = target._schema.name.split("::")[1]
    into, functional = arguments[0] if arguments else None, functional_form(target)
    if not isinstance(into, Carrier):
        raise AliasedWriteError(
            f"operation {name} writes values that depend on the parameters into a tensor that does not; make the result by "
            "torch.cat, torch.stack or torch.where"
        )
    if torch.Tag.inplace_view in target.tags and functional is not None:  # only how the tensor looks at its memory changes
        result = functional(*arguments, **keywords)
        with no_dispatch():
            target(*arguments, **keywords)  # of the wrapper, which tells its shape and strides
        into.value = result.value
        return into
    others = [member for member in (reference() for reference in into.family) if member is not None and member is not into]
    if others or functional is None:
        raise AliasedWriteError(
            f"operation {name} writes in place into memory shared with {len(others)} other tensors, which cannot be followed "
            "without a trace; write out of place"
        )
    result = functional(*arguments, **keywords)
    into.value = result.value if isinstance(result, Carrier) else Triple(result)
    into.family = [weakref.ref(into)]
    return into


def lanes_by_dispatch(
    frame: Frame, directions: Moved, call: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor]
) -> Tensor | None:
    """Lanes of a loss by calling it.

    Args:
        frame: radii and dtype; host decisions and fallbacks are counted there.
        directions: ``[K, *shape]`` by input name, in the dtype of the lanes.
        call: takes tensors by input name, gives the loss.
        inputs: tensors at w by name.

    Returns:
        ``[K, c, S']``; ``None`` if the loss does not move.

    Raises:
        AliasedWriteError: writing in place into memory that other tensors look at.
        MissingRuleError: an operation without a rule that cannot be evaluated locally.
    """
    seed = collapsed.seeded if frame.collapsed else seeded
    values = {
        name: Carrier(Triple.along(tensor, directions[name], seed), frame) if name in directions else tensor
        for name, tensor in inputs.items()
    }
    with torch.no_grad():
        loss = call(values)
    return loss.value.lanes if isinstance(loss, Carrier) and isinstance(loss.value, Triple) else None


class Dispatched:
    """A module with weights and one batch, in place of a :class:`Propagation` of its trace.

    Args:
        module: what ``call`` runs.
        call: takes the batch's tensors, gives the loss.
        inputs: ``parameter:NAME`` for parameters and buffers, then ``batch:NUMBER`` for the batch's tensors.
    """

    def __init__(self, module: nn.Module, call: Callable[[Sequence[Tensor]], Any], inputs: Mapping[str, Tensor]) -> None:
        self._holder, self._inputs = Called(module, call), dict(inputs)

    operations = 0  # of a forward: not recorded

    def loss(self) -> Tensor:
        """The loss at w."""
        with torch.no_grad():
            return self._call(self._inputs)

    def lanes(self, frame: Frame, directions: Moved) -> Tensor | None:
        """Lanes of the loss, ``[K, c, S']``, along directions ``[K, *shape]`` by input name; ``None`` if it does not move."""
        try:
            return lanes_by_dispatch(frame, directions, self._call, self._inputs)
        except (UntraceableError, MissingRuleError):
            raise
        except Exception as error:  # the model ran on plain tensors just before
            raise UntraceableError(
                f"model must run on tensors that carry lanes with method='dispatch', got {type(error).__name__}: "
                f"{first_line(error)[:200]}"
            ) from error

    def _call(self, values: Mapping[str, Tensor]) -> Tensor:
        named = {f"module.{name.removeprefix('parameter:')}": value for name, value in values.items() if name.startswith("param")}
        batch = [value.clone() for name, value in values.items() if name.startswith("batch:")]
        out: Tensor = functional_call(self._holder, named, (batch,))
        return out
