"""The only code that edits a graph. Keeps names, specs and topological order right in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from sparsify.ir.nodes import LEVEL, MADE_BY, TensorSpec
from sparsify.ir.state import find, place
from sparsify.ir.traits import argument, arguments, draws, has_argument, kind_of, named_outputs, place_of_argument

if TYPE_CHECKING:
    from sparsify.ir.program import Program

_HELD = "_recompilation_held"


def add_state(program: Program, name: str, value: Tensor | nn.Module, *, persistent: bool = True) -> None:
    """Register a buffer or submodule of the program under a dotted name; state dicts leave out a buffer that is not ``persistent``."""
    place(program, name, value, persistent=persistent)


def has_state(program: Program, name: str) -> bool:
    """Return whether the program has a parameter, buffer or submodule of that name."""
    return find(program, name) is not None


def replace_parameter(program: Program, name: str, values: Tensor) -> None:
    """Register new values of a parameter or buffer, of any shape, under every name that its tensor has."""
    _register(program, program.tensor(name), values.contiguous())


def rewrite(program: Program, name: str, values: Tensor) -> None:
    """Give a parameter or buffer new values of the same shape, under every name that it has.

    The new values get their own memory, with the old dtype and layout. Other tensors on the old memory, such as those of a copy that
    shares weights, keep their values.
    """
    old = program.tensor(name)
    _register(program, old, torch.empty_like(old.detach()).copy_(values.detach()))


def _register(program: Program, old: Tensor, values: Tensor) -> None:
    tables = (program.named_parameters(remove_duplicate=False), program.named_buffers(remove_duplicate=False))
    same = [name for table in tables for name, value in table if value is old]
    fresh = nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values
    for name in same:
        owner, _, leaf = name.rpartition(".")
        persistent = leaf not in program.get_submodule(owner)._non_persistent_buffers_set
        place(program, name, fresh, persistent=persistent)


def remove_state(program: Program, name: str) -> None:
    """Remove a buffer, parameter or submodule, and bare modules that become empty."""
    owner, _, leaf = name.rpartition(".")
    module = program.get_submodule(owner)
    for table in (module._parameters, module._buffers, module._modules):
        table.pop(leaf, None)
    module._non_persistent_buffers_set.discard(leaf)
    if owner and not (module._parameters or module._buffers or module._modules):
        remove_state(program, owner)


def spec_of(value: Tensor, name: str) -> TensorSpec:
    """Make the spec of a concrete tensor."""
    return TensorSpec(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))


def state_node(program: Program, phase: str, name: str, *, before: fx.Node) -> fx.Node:
    """Return a node that reads a parameter or buffer before ``before``; an earlier node that reads it is reused."""
    graph = program.phases[phase].graph
    for node in graph.nodes:
        if node is before:
            break
        if node.op == "get_attr" and node.target == name:
            return node
    return new_state_node(program, phase, name, before=before)


def new_state_node(program: Program, phase: str, name: str, *, before: fx.Node) -> fx.Node:
    """Insert before ``before`` a node that reads a parameter or buffer which no earlier node of the phase reads."""
    graph = program.phases[phase].graph
    with graph.inserting_before(before):
        node = graph.create_node("get_attr", name, name=name.replace(".", "_"))
    node.meta["spec"] = spec_of(program.tensor(name), node.name)
    return node


def call_after(
    program: Program,
    phase: str,
    anchor: fx.Node,
    target: Callable[..., Any] | str,
    args: Sequence[Any],
    *,
    spec: TensorSpec | None = None,
) -> fx.Node:
    """Insert a call after ``anchor``; a text target calls the program's submodule of that name."""
    graph = program.phases[phase].graph
    with graph.inserting_after(anchor):
        node = (
            graph.call_module(target, tuple(args))
            if isinstance(target, str)
            else graph.call_function(target, tuple(args))
        )
    source = spec or anchor.meta.get("spec")
    if isinstance(source, TensorSpec):
        node.meta["spec"] = TensorSpec(node.name, source.shape, source.dtype)
    if "owner" in anchor.meta:
        node.meta["owner"] = anchor.meta["owner"]
    return node


def call_like(
    program: Program,
    phase: str,
    anchor: fx.Node,
    node: fx.Node,
    swapped: Mapping[fx.Node, Any],
    *,
    spec: TensorSpec | None,
) -> fx.Node:
    """Insert after ``anchor`` a call of the operator of ``node``, with some of its arguments replaced."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda value: swapped.get(value, value))
    made = call_after(program, phase, anchor, cast("Callable[..., Any]", node.target), args, spec=spec)
    made.kwargs = kwargs
    return made


def reroute(old: fx.Node, new: fx.Node, *, users: Sequence[fx.Node] | None = None) -> None:
    """Let every user of ``old`` other than ``new``, or those given, read ``new``."""
    for user in list(old.users) if users is None else users:
        if user is not new:
            user.replace_input_with(old, new)


def replace_target(node: fx.Node, target: Callable[..., Any]) -> None:
    """Change the function a node calls; arguments, name and spec stay."""
    node.target = target


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Set an argument of a node by name, at its position; omitted arguments before it get their defaults.

    If the last argument becomes None, it is omitted.
    """
    place = place_of_argument(node.target, name)
    if place is None or (place >= len(node.args) and name in node.kwargs):
        node.kwargs = {**node.kwargs, name: value}
        return
    given, named = list(node.args), dict(node.kwargs)
    for before, default in [*arguments(node).items()][len(given) : place + 1]:
        given.append(named.pop(before, default))
    given[place] = value
    node.args, node.kwargs = tuple(given if value is not None or place < len(given) - 1 else given[:-1]), named


def resize(node: fx.Node, dimension: int, size: int) -> None:
    """Change the size of one dimension in the result of a reshape, if the node's arguments contain sizes."""
    name = next((name for name in ("shape", "size") if has_argument(node, name)), None)
    sizes = list(argument(node, name)) if name is not None else []
    if name is not None and sizes[dimension] != -1:
        sizes[dimension] = size
        set_argument(node, name, sizes)


def set_arguments(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> None:
    """Set all arguments of a node."""
    node.args, node.kwargs = tuple(args), dict(kwargs or {})


def set_aside(node: fx.Node, key: str, names: Collection[str]) -> None:
    """Note the call of a node under ``key`` in its metadata, without the values of the arguments ``names``; see `restore`."""
    places = {place_of_argument(node.target, name) for name in names}
    args = tuple(None if place in places else value for place, value in enumerate(node.args))
    node.meta[key] = (node.target, args, {k: None if k in names else value for k, value in node.kwargs.items()})


def restore(node: fx.Node, key: str, given: Mapping[str, Any]) -> None:
    """Let a node make the call again that `set_aside` noted, with the arguments ``given``."""
    target, args, kwargs = node.meta.pop(key)
    names = {place_of_argument(target, name): name for name in given}
    node.target = target
    node.args = tuple(given[names[place]] if place in names else value for place, value in enumerate(args))
    node.kwargs = {name: given.get(name, value) for name, value in kwargs.items()}


def append_arguments(node: fx.Node, *values: Any) -> None:
    """Add positional arguments after those a node has."""
    node.args = (*node.args, *values)


def erase(program: Program, phase: str, node: fx.Node) -> None:
    """Erase a node that nothing reads any more."""
    program.phases[phase].graph.erase_node(node)


def bypass(program: Program, phase: str, node: fx.Node, value: fx.Node) -> None:
    """Let the users of ``node`` read ``value`` and erase ``node``."""
    node.replace_all_uses_with(value)
    program.phases[phase].graph.erase_node(node)


def append_input(program: Program, phase: str, name: str, spec: TensorSpec, *, after: fx.Node) -> fx.Node:
    """Add an input after another one; returns its node, whose name is ``name`` or begins with it. The program's table stays as it is."""
    graph = program.phases[phase].graph
    with graph.inserting_after(after):
        node = graph.placeholder(name)
    node.meta["spec"] = TensorSpec(node.name, spec.shape, spec.dtype)
    return node


def append_output(program: Program, phase: str, name: str, value: fx.Node, *, head: str | None = None) -> None:
    """Add a named flat output after the existing ones; ``head`` is the name of the calibration head that makes it."""
    output = program.output_node(phase)
    output.args = ((*output.args[0], value),)  # type: ignore[misc]
    output.meta["names"] = (*output.meta["names"], name)
    if head is not None:
        output.meta[MADE_BY] = {**output.meta.get(MADE_BY, {}), name: head}


def replace_output(program: Program, phase: str, name: str, value: fx.Node) -> None:
    """Return another value under the name of an existing output; its other readers stay."""
    output = program.output_node(phase)
    names = output.meta["names"]
    output.args = (tuple(value if n == name else old for n, old in zip(names, output.args[0], strict=True)),)  # type: ignore[arg-type]


def remove_outputs(program: Program, phase: str, names: Collection[str], *, head: str | None = None) -> None:
    """Remove outputs that `append_output` added, and what is recorded of ``head``, which made them; their nodes stay.

    The level of a head is forgotten with the last head.
    """
    output = program.output_node(phase)
    kept = [(name, value) for name, value in named_outputs(output).items() if name not in names]
    output.args = (tuple(value for _, value in kept),)
    output.meta["names"] = tuple(name for name, _ in kept)
    made = output.meta.get(MADE_BY, {})
    output.meta[MADE_BY] = {name: by for name, by in made.items() if name not in names and by != head}
    if not output.meta[MADE_BY]:
        for key in (MADE_BY, LEVEL):
            output.meta.pop(key, None)


def record_level(program: Program, phase: str, level: float) -> None:
    """Note the level that the calibration head of a phase was fitted for."""
    program.output_node(phase).meta[LEVEL] = level


def erase_dead(program: Program, phase: str) -> list[str]:
    """Erase nodes without users and without side effects; returns their names, in erasing order."""
    graph = program.phases[phase].graph
    erased: list[str] = []
    for node in reversed(list(graph.nodes)):
        if node.op in ("get_attr", "call_function", "call_module") and not node.users and not is_impure(node):
            erased.append(node.name)
            graph.erase_node(node)
    return erased


def is_impure(node: fx.Node) -> bool:
    """Return whether erasing the node would change state: an in-place ATen operator, an assertion, a draw of random numbers."""
    if kind_of(node) == "dropout" and not draws(node):
        return False
    name = getattr(node.target, "_opname", "") or getattr(node.target, "__name__", "")
    return node.op == "call_function" and (name.endswith("_") or "assert" in name or node.is_impure())


def move(program: Program, device: torch.device) -> None:
    """Move parameters and buffers to a device, and the tensors that the graphs themselves make."""
    program.to(device)
    for phase in program.phases.values():
        for node in phase.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": device}
            if any(isinstance(argument, torch.device) for argument in node.args):
                node.args = tuple(device if isinstance(argument, torch.device) else argument for argument in node.args)
        phase.recompile()


def finish(program: Program) -> None:
    """Check and recompile every phase after editing."""
    for module in program.phases.values():
        module.lint()
        if not program.__dict__.get(_HELD):
            module.recompile()


@contextlib.contextmanager
def compiled_once(program: Program) -> Generator[None]:
    """Recompile the phases once, at the end of the block, however many passes run in it. No phase may run within the block."""
    program.__dict__[_HELD] = True
    try:
        yield
    finally:
        del program.__dict__[_HELD]
        for module in program.phases.values():
            module.recompile()


def drop_train(program: Program) -> list[str]:
    """Keep only the eval phase, in eval mode, and remove hooks and state that it does not need; returns their names."""
    program.eval()
    hooks = [*program.hooks()]
    for table in (program.phases, program.out_specs, program.ranges):
        table.pop("train")
    erase_dead(program, "eval")
    unread = drop_unread(program)
    for name in hooks:
        remove_state(program, name)
    return [*unread, *hooks]


def drop_unread(program: Program) -> list[str]:
    """Remove parameters and buffers that no phase reads; returns their names."""
    nodes = [node for phase in program.phases.values() for node in phase.graph.nodes if node.op == "get_attr"]
    read = {id(program.tensor(str(node.target))) for node in nodes}
    state = [*program.named_parameters(remove_duplicate=False), *program.named_buffers(remove_duplicate=False)]
    unread = [name for name, value in state if id(value) not in read]
    for name in unread:
        remove_state(program, name)
    return unread


def erase_unused(program: Program) -> None:
    """Erase dead nodes of a deployed program, and the parameters and buffers that nothing reads any more."""
    erase_dead(program, "eval")
    drop_unread(program)


def reshape_spec(node: fx.Node, shape: Sequence[int | str]) -> None:
    """Record that the value of ``node`` has another shape."""
    node.meta["spec"] = node.meta["spec"].of_shape(shape)


def respec(node: fx.Node, dimension: int, size: int) -> TensorSpec | None:
    """Return the spec of ``node``'s value with one dimension set to ``size``; None if the node has no spec."""
    spec = node.meta.get("spec")
    if not isinstance(spec, TensorSpec):
        return None
    return TensorSpec(spec.name, (*spec.shape[:dimension], size, *spec.shape[dimension + 1 :]), spec.dtype)
