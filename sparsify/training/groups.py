"""Adds parameters that a method's passes create to the optimizer, with the settings of the most similar parameter it holds."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sparsify.ir import Program
from sparsify.training.optimizers import Optimizers


def adopt(program: Program, optimizer: Optimizers) -> list[str]:
    """Add every trainable parameter that the optimizer does not hold to one of its groups; existing schedulers stay valid.

    The parameter joins the group of the held parameter with the same last name and the most similar path (``fc.unknown_logit.bias`` joins
    ``fc.bias``). Parameters with the same number of dimensions are preferred, because groups without weight decay are usually made by it.

    Returns:
        The names of the added parameters.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    held = {name: p for name, p in program.named_parameters() if id(p) in groups}
    new = {name: p for name, p in program.named_parameters() if p.requires_grad and id(p) not in groups}
    for name, parameter in new.items():
        groups[id(held[_nearest(name, parameter, held)])]["params"].append(parameter)
    return list(new)


def _nearest(name: str, parameter: nn.Parameter, held: Mapping[str, nn.Parameter]) -> str:
    path = name.split(".")

    def closeness(other: str) -> tuple[bool, bool, int]:
        steps = other.split(".")
        common = next(
            (i for i, (a, b) in enumerate(zip(path, steps, strict=False)) if a != b), min(len(path), len(steps))
        )
        return held[other].ndim == parameter.ndim, steps[-1] == path[-1], common

    return max(held, key=closeness)
