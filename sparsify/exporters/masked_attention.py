"""Attention whose mask lets a query see nothing: torch answers 0 there, the softmax of ONNX NaN, or a mean of all values."""

from __future__ import annotations

import math

import torch
from torch import fx

from sparsify.ir import Program, TensorSpec, surgery
from sparsify.ir.traits import argument

aten = torch.ops.aten


def answer_with_zero(program: Program) -> None:
    """Write 0 into the rows of an attention whose mask is False, or -inf, all over; what PyTorch computes does not change.

    Args:
        program: a copy that is to be exported; its eval phase is rewritten.
    """
    nodes = [n for n in program.phases["eval"].graph.nodes if n.target is aten.scaled_dot_product_attention.default]
    for node in nodes:
        mask, spec = argument(node, "attn_mask"), node.meta.get("spec")
        known = mask.meta.get("spec") if isinstance(mask, fx.Node) else None
        if isinstance(known, TensorSpec) and isinstance(spec, TensorSpec):
            _answer(program, node, mask, known, spec)
    if nodes:
        surgery.finish(program)


def _answer(program: Program, node: fx.Node, mask: fx.Node, known: TensorSpec, spec: TensorSpec) -> None:
    row, users = (*known.shape[:-1], 1), list(node.users)
    seen = TensorSpec("", row, "bool")
    if known.dtype == "bool":
        some = surgery.call_after(program, "eval", node, aten.any.dim, (mask, -1, True), spec=seen)
    else:
        most = TensorSpec("", row, known.dtype)
        highest = surgery.call_after(program, "eval", node, aten.amax.default, (mask, [-1], True), spec=most)
        some = surgery.call_after(program, "eval", highest, aten.ne.Scalar, (highest, -math.inf), spec=seen)
    answered = surgery.call_after(program, "eval", some, aten.where.ScalarOther, (some, node, 0.0), spec=spec)
    surgery.reroute(node, answered, users=users)
