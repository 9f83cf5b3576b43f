"""A program as deterministic text."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from torch import fx

from sparsify.ir.nodes import MADE_BY, MASK_OPERATORS, GradientTap, apply_random_mask
from sparsify.ir.traits import argument, outputs_of

if TYPE_CHECKING:
    from sparsify.ir.program import Program


def program_text(program: Program) -> str:
    """Header, then every node of both phases with its spec; masks with their active counts."""
    costs = program.costs()
    head = f"program @{program.name} stage={program.stage.value} params={costs.params} macs={costs.macs_dense}"
    if program.stage.value == "masked":
        head += f" maskable={costs.maskable} active={costs.active} density={costs.density:.4f}"
    lines = [head]
    parameters = {name for name, _ in program.named_parameters(remove_duplicate=False)}
    for phase in program.phases:
        lines.append(f"  {phase}:")
        rows = [_row(program, node, parameters) for node in program.phases[phase].graph.nodes]
        width = min(max((len(left) for left, _ in rows), default=0), 72)
        lines.extend(f"    {left:<{width}}  {right}".rstrip() for left, right in rows)
    return "\n".join(lines) + "\n"


def _row(program: Program, node: fx.Node, parameters: Container[str]) -> tuple[str, str]:
    spec = node.meta.get("spec")
    right = f": {spec}" if spec is not None else ""
    if node.op == "placeholder":
        return f"%{node.name} = input", right
    if node.op == "output":
        pairs = zip(node.meta["names"], outputs_of(node), strict=False)
        made = ", ".join(dict.fromkeys(node.meta.get(MADE_BY, {}).values()))
        return "return " + ", ".join(
            f"{name}={_value(value)}" for name, value in pairs
        ), f": head {made}" if made else ""
    if node.op == "get_attr":
        mask = any(user.target in MASK_OPERATORS and argument(user, "mask") is node for user in node.users)
        if mask:
            value = program.get_buffer(str(node.target))
            right += f"  {int(value.count_nonzero())}/{value.numel()} active"
        hidden = any(user.target is apply_random_mask and argument(user, "visible") is node for user in node.users)
        kind = "mask" if mask else "random mask" if hidden else "param" if str(node.target) in parameters else "buffer"
        return f'%{node.name} = {kind} "{node.target}"', right
    name = node.target if isinstance(node.target, str) else target_name(node.target)
    if node.op == "call_module":
        kind = "tap" if isinstance(program.get_submodule(name), GradientTap) else "record"
        name = f'{kind} "{name}"'
    arguments = [*map(_value, node.args)] + [f"{k}={_value(v)}" for k, v in node.kwargs.items()]
    return f"%{node.name} = {name}({', '.join(arguments)})", right


def target_name(target: Any) -> str:
    """``aten.linear`` for an ATen overload, the plain name for one of our operators."""
    text = str(target)
    return (
        text.removesuffix(".default") if text.startswith(("aten.", "sparsify.")) else getattr(target, "__name__", text)
    )


def _value(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return repr(value)
