"""Side effects of a phase: buffers that it changes, and random numbers that it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from sparsify.ir.program import Program
from sparsify.ir.traits import argument, draws, named_outputs, written


def changed_buffers(program: Program, phase: str) -> dict[str, bool]:
    """Return the buffers that a call of the phase changes, by name; True if an output depends on their value."""
    read = _ancestors(program.output_node(phase))
    buffers = {name: id(value) for name, value in program.named_buffers(remove_duplicate=False)}
    nodes = [n for n in program.phases[phase].graph.nodes if n.op == "get_attr" and n.target in buffers]
    changed: dict[str, bool] = {}
    for node in program.phases[phase].graph.nodes:
        for value in written(node):
            source = _source(value)
            if source.op == "get_attr" and source.target in buffers:
                name = str(source.target)
                readers = (n for n in nodes if buffers[str(n.target)] == buffers[name] and n in read)
                changed[name] = changed.get(name, False) or any(True for _ in readers)
    return changed


def changed_in_place(program: Program, phase: str) -> list[fx.Node]:
    """Return the nodes of the phase that change an intermediate value (not a buffer) in place, in graph order."""
    nodes = program.phases[phase].graph.nodes
    return [node for node in nodes if any(_source(value).op != "get_attr" for value in written(node))]


def beside(program: Program, phase: str, output: str = "logits") -> dict[str, str]:
    """Find trainable parameters that influence other outputs of the phase but not ``output``.

    Returns:
        By name of the parameter, the name of an output that depends on it.
    """
    named = named_outputs(program.output_node(phase))
    by_name = {name: leaf for name, leaf in named.items() if isinstance(leaf, fx.Node)}
    parameters = dict(program.named_parameters(remove_duplicate=False))
    writers = dict[fx.Node, list[fx.Node]]()
    for node in program.phases[phase].graph.nodes:
        for value in written(node):
            writers.setdefault(_source(value), []).append(node)

    def reached(leaf: fx.Node) -> dict[int, str]:
        read = {leaf, *_ancestors(leaf, writers)}
        return {id(parameters[t]): t for n in read if n.op == "get_attr" and (t := str(n.target)) in parameters}

    if output not in by_name:
        return {}
    trained, found = reached(by_name[output]), dict[str, str]()
    for name, leaf in by_name.items():
        missing = {target for key, target in reached(leaf).items() if key not in trained}
        found |= {target: name for target in sorted(missing - found.keys()) if parameters[target].requires_grad}
    return found


def random_draws(program: Program, phase: str) -> list[fx.Node]:
    """Return the nodes of the phase that draw random numbers on which an output depends, in graph order."""
    read = _ancestors(program.output_node(phase))
    return [node for node in program.phases[phase].graph.nodes if node in read and draws(node)]


def unexportable(program: Program) -> str | None:
    """Describe what an exported eval phase would lose, as the end of a sentence that starts with the program's name; None for nothing."""
    if state := [name for name, is_read in changed_buffers(program, "eval").items() if is_read]:
        return (
            f"changes the buffers {', '.join(map(repr, state))} in eval mode, on which its outputs depend, and a file keeps no state "
            f"between calls. Change them in training only, or pass the state in and out as an input and an output."
        )
    if draws := random_draws(program, "eval"):
        return (
            f"draws random numbers in eval mode ({place_of(draws[0])}), so no two calls agree and its file cannot be proved. Pass the "
            f"random numbers in as an input, or draw in training only."
        )
    return None


def place_of(node: fx.Node) -> str:
    """Name a node's operator and the module it belongs to, for a message."""
    owner = node.meta.get("owner")
    name = str(node.target).removesuffix(".default")
    return f"{name} in {owner!r}" if owner else name


def _source(node: fx.Node) -> fx.Node:
    """Return the node that owns the memory of a value, looking through views and in-place operators."""
    while node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        aliased = [a.name for a in schema.arguments if a.alias_info is not None] if schema is not None else []
        value = argument(node, aliased[0]) if aliased else None
        if not isinstance(value, fx.Node):
            break
        node = value
    return node


def _ancestors(node: fx.Node, writers: Mapping[fx.Node, Sequence[fx.Node]] | None = None) -> set[fx.Node]:
    """Return the nodes that a node's value depends on, without itself.

    ``writers`` maps a node to the in-place operators that change its value; with it, the result includes these too.
    """
    found: set[fx.Node] = set()
    waiting = [*node.all_input_nodes, *((writers or {}).get(_source(node), ()))]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(current.all_input_nodes)
            waiting.extend((writers or {}).get(_source(current), ()))
    return found
