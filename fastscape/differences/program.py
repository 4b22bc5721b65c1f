"""A model and its loss as a list of operations, traced once on real tensors.

``torch.fx``'s ``make_fx`` records the operations before autograd takes composite ones apart, so that linear layers, norms,
attention and the loss stay whole. Decisions that the forward takes on constants (is this mask causal?) are taken as they fall,
where ``torch.export`` refuses; those on values that depend on the weights are recorded, and counted where they would fall
otherwise at w +- e d. Writing in place is replaced by its functional form; through views, by torch's functionalisation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions, decomposition_table
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

from fastscape._checks import first_line
from fastscape._creation import FunctionMode
from fastscape._state import preserved_rng
from fastscape.differences.rules.table import RULES, aten
from fastscape.differences.steps import Program, Step
from fastscape.differences.tracing_errors import (
    IDENTITY,
    SIZED_BY_VALUES,
    UntraceableError,
    check_modules,
    check_steps,
    check_transform,
)

HOST = {"_local_scalar_dense", "item", "is_nonzero", "equal"}  # operations that hand a value to Python
_CONSTANT = {f"new_{kind}" for kind in ("zeros", "ones", "full", "empty")} | {
    f"{kind}_like" for kind in ("zeros", "ones", "full", "empty")
}
_APART = {"multi_margin_loss", "multilabel_margin_loss_forward", "embedding_bag"}  # torch takes these apart only if asked
_ROUNDS = 8  # of taking composite operations apart, until every piece has a rule


def trace(module: nn.Module, call: Callable[[Sequence[Tensor]], Any], tensors: Mapping[str, Tensor], batch: Sequence[Tensor],
          probed: Sequence[str]) -> Program:  # fmt: skip
    """Record ``call(batch)``, the loss of a batch's tensors by ``module`` with the given parameters and buffers.

    Args:
        module: what ``call`` runs.
        call: takes the batch's tensors, gives the loss.
        tensors: parameters and buffers by name.
        batch: the batch's tensors.
        probed: names of the parameters that move.

    Raises:
        UntraceableError: a compiled or scripted module, an operation that cannot be recorded.
    """
    check_modules(module, tensors)
    names = list(tensors)
    holder = Called(module, call)

    def function(values: list[Tensor], inputs: list[Tensor]) -> Tensor:
        out: Tensor = functional_call(holder, {f"module.{n}": v for n, v in zip(names, values, strict=True)}, (inputs,))
        return out

    function._orig_mod = module  # type: ignore[attr-defined]
    arguments = ([tensors[name].detach() for name in names], list(batch))
    try:
        with preserved_rng():  # what was recorded is run again, draws included
            graph = _recorded(function, arguments, {}, modules=True)
            graph = _with_rules(_functional(graph, arguments), arguments)
        _plain_pools(graph)
    except UntraceableError:
        raise
    except Exception as error:
        raise UntraceableError(
            f"model must run under torch.fx to be followed operation by operation, got {type(error).__name__}: "
            f"{first_line(error)[:200]}"
        ) from error
    program = _program(graph, names, set(probed))
    check_steps(graph, program)
    return program


class _Handed(FunctionMode):
    """Puts a mark into the trace where values leave torch for NumPy or Python lists."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        check_transform(function)
        if function in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            raise UntraceableError("model must not differentiate in its forward to be followed; write the derivative out")
        if function in (Tensor.numpy, Tensor.__array__, Tensor.tolist):
            torch.equal(arguments[0], arguments[0])
        return function(*arguments, **(keywords or {}))


class Called(nn.Module):
    """The loss of a batch's tensors as a module that holds the model, so that its parameters can be replaced."""

    def __init__(self, module: nn.Module, call: Callable[[Sequence[Tensor]], Any]) -> None:
        super().__init__()
        self.module = module
        self._loss = call

    def forward(self, inputs: Sequence[Tensor]) -> Any:
        """The loss."""
        with _Handed():
            return self._loss(inputs)


def _recorded(
    function: Any, arguments: Any, table: Mapping[Any, Any], *, modules: bool = False, composite: bool = True
) -> fx.GraphModule:
    again = isinstance(function, fx.GraphModule)  # node by node, so that the new ones know their modules
    with preserve_node_meta() if again else nullcontext():
        graph = make_fx(
            fx.Interpreter(function).run if again else function,
            decomposition_table=dict(table),
            tracing_mode="real",
            pre_dispatch=composite,
            record_module_stack=modules,
            _error_on_data_dependent_ops=False,
        )(*arguments)
    _without_dead_code(graph)
    return graph


def _without_dead_code(graph: fx.GraphModule) -> None:
    """Leave out what nobody uses, but for values handed to Python and writes."""
    graph.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or _handed(node) or _writes(node))


def _handed(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.split("::")[1] in HOST | SIZED_BY_VALUES


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and not isinstance(node.target, str)


# ---------------------------------------------------------------- writing in place
def _functional(graph: fx.GraphModule, arguments: Any) -> fx.GraphModule:
    """The graph without operations that write into their arguments."""
    nodes = list(graph.graph.nodes)
    families = _families(nodes)
    order = {node: place for place, node in enumerate(nodes)}
    for node in nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
            continue
        if not _replaced(graph, node, families, order):
            functional = torch.func.functionalize(graph, remove="mutations_and_views")
            return _recorded(functional, arguments, {}, composite=False)
    _without_dead_code(graph)
    graph.recompile()
    return graph


def functional_form(overload: Any) -> Any:
    """The operation that gives what another writes in place into its first argument; ``None`` if there is none."""
    packet = getattr(aten, overload._schema.name.split("::")[1].removesuffix("_"), None)
    if packet is None:
        return None
    found = getattr(packet, overload._overloadname if overload._overloadname in packet.overloads() else packet.overloads()[0])
    return None if found._schema.is_mutable else found


def _families(nodes: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Which tensors may share memory: every node's oldest ancestor through views."""
    family: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        source = node
        if node.op == "call_function" and node.all_input_nodes:
            schema = getattr(node.target, "_schema", None)
            views = schema is not None and any(out.alias_info is not None for out in schema.returns)
            identity = schema is not None and schema.name.split("::")[1].rstrip("_") in IDENTITY
            if views or identity or node.target is operator.getitem:
                source = family.get(node.all_input_nodes[0], node.all_input_nodes[0])
        family[node] = source
    return family


def _replaced(graph: fx.GraphModule, node: fx.Node, families: dict[fx.Node, fx.Node], order: dict[fx.Node, int]) -> bool:
    """Put the functional form in place of a write, if nobody else looks at the memory; else False."""
    overload = node.target
    assert isinstance(overload, torch._ops.OpOverload)
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in overload._schema.arguments]
    if written.count(True) != 1 or not written[0]:
        return False
    target = node.args[0]
    assert isinstance(target, fx.Node)
    later = [
        user
        for other, family in families.items()
        if family is families[target] and other is not target and order[other] < order[node]
        for user in other.users
        if order.get(user, 0) > order[node]
    ]
    functional = functional_form(overload)
    if later or functional is None:
        return False
    with graph.graph.inserting_before(node):
        fresh = graph.graph.call_function(functional, node.args, node.kwargs)
        fresh.meta = dict(node.meta)
    order[fresh], families[fresh] = order[node], families[target]
    node.replace_all_uses_with(fresh)
    target.replace_all_uses_with(fresh, delete_user_cb=lambda user: order.get(user, 0) > order[node])
    families.pop(node)
    graph.graph.erase_node(node)
    return True


# ---------------------------------------------------------------- composite operations
def _with_rules(graph: fx.GraphModule, arguments: Any) -> fx.GraphModule:
    """The graph with operations that lack a rule taken apart, as far as torch can."""
    for _ in range(_ROUNDS):
        table = {node.target: apart for node in graph.graph.nodes if (apart := decomposition(node.target)) is not None}
        if not table:
            return graph
        graph = _functional(_recorded(graph, arguments, table), arguments)
    return graph


def decomposition(target: Any) -> Callable[..., Any] | None:
    """How to take an operation apart; ``None`` where it has a rule, or nobody knows how."""
    if not isinstance(target, torch._ops.OpOverload) or target in RULES or target._schema.name.split("::")[1] in HOST:
        return None
    if not any(
        isinstance(argument.type, torch.TensorType) or "Tensor" in str(argument.type) for argument in target._schema.arguments
    ):
        return None
    if target._schema.name.split("::")[0] != "aten":
        return None
    known: Callable[..., Any] | None = core_aten_decompositions().get(target)
    if known is None and target._schema.name.split("::")[1] in _APART:
        known = decomposition_table.get(target)
    if known is not None:
        return known
    if torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd"):  # type: ignore[no-untyped-call]
        return target.decompose
    return None


def _plain_pools(graph: fx.GraphModule) -> None:
    """Pools of which nobody wants the places of the maxima, as the pool that has a kernel."""
    for node in list(graph.graph.nodes):
        if node.target not in (aten.adaptive_max_pool2d.default, aten.max_pool2d_with_indices.default):
            continue
        values = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
        window = _window(node)
        if len(values) < len(node.users) or window is None:
            continue
        with graph.graph.inserting_before(node):
            plain = graph.graph.call_function(aten.max_pool2d.default, (node.args[0], *window))
            plain.meta = dict(node.meta)
        for user in values:
            user.replace_all_uses_with(plain)
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)
    graph.recompile()


def _window(node: fx.Node) -> tuple[Any, ...] | None:
    """Arguments of the pool of fixed windows that a pool is; ``None`` if it is none."""
    if node.target is aten.max_pool2d_with_indices.default:
        return node.args[1:]
    source = node.args[0]
    meta = source.meta.get("val", source.meta.get("tensor_meta")) if isinstance(source, fx.Node) else None
    if meta is None or not isinstance(node.args[1], (list, tuple)):
        return None
    sizes = list(zip(meta.shape[-2:], node.args[1], strict=True))
    if any(not isinstance(output, int) or not output or size % output for size, output in sizes):
        return None
    window = [size // output for size, output in sizes]
    return window, window


# ---------------------------------------------------------------- steps
def _program(graph: fx.GraphModule, names: Sequence[str], probed: set[str]) -> Program:
    nodes = list(graph.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    inputs = [f"parameter:{name}" for name in names] + [f"batch:{i}" for i in range(len(placeholders) - len(names))]
    called = dict(zip(placeholders, inputs, strict=True))
    moving = {node for node, label in called.items() if label.removeprefix("parameter:") in probed}
    constants: dict[str, Tensor] = {}
    steps: list[Step] = []
    result = next(node for node in nodes if node.op == "output").args[0]
    if isinstance(result, (tuple, list)):
        result = result[0]
    last = _last_uses(nodes)
    for node in nodes:
        if node.op == "get_attr":
            constants[node.name] = _attribute(graph, str(node.target))
        elif node.op == "call_function":
            if any(source in moving for source in node.all_input_nodes) and not _is_constant(node.target):
                moving.add(node)
            steps.append(Step(node.name, node.target, node.args, node.kwargs, _module(node), node in moving, last.get(node, ())))
    if not isinstance(result, fx.Node):
        raise UntraceableError("model must give a loss that is computed from tensors, got a constant")
    return Program(tuple(steps), tuple(inputs), tuple(node.name for node in placeholders), constants, result.name)


def _is_constant(target: Any) -> bool:
    """Whether an operation looks at the shape and the kind of its argument only."""
    schema = getattr(target, "_schema", None)
    return schema is not None and schema.name.split("::")[1] in _CONSTANT


def _last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, tuple[str, ...]]:
    """The values that can be freed after each node."""
    seen: set[fx.Node] = set()
    last: dict[fx.Node, tuple[str, ...]] = {}
    for node in reversed(nodes):
        ending = [source for source in node.all_input_nodes if source not in seen and source.op == "call_function"]
        seen.update(ending)
        last[node] = tuple(source.name for source in ending)
    return last


def _attribute(graph: fx.GraphModule, path: str) -> Tensor:
    found: Any = graph
    for part in path.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _module(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, kind = list(stack.values())[-1]
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return f"{path} ({name.rsplit('.', 1)[-1]})" if path else str(name)
