"""Inputs of which a random share of the elements is set to 0."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsify.parts.trees import Tree, mapped, shapes, tensors


def masked_inputs(inputs: Tree, ratio: float, generator: torch.Generator) -> Tree:
    """Set each element of the floating-point inputs to 0 with a probability of ``ratio``, independently; returns new tensors.

    Inputs of whole numbers, such as tokens, and of bools, such as attention masks, stay unchanged: 0 is a token like others there.
    Elements that stay are not scaled.

    Args:
        inputs: a tensor, or a tree of tensors.
        ratio: in [0, 1).
        generator: on the CPU.

    Raises:
        ValueError: If no input is floating-point.

    Examples:
        >>> import torch
        >>> from sparsify.parts.input_masks import masked_inputs
        >>> found = masked_inputs(torch.ones(1000), 0.3, torch.Generator().manual_seed(0))
        >>> round(float(found.mean()), 1)
        0.7
    """
    if not any(tensor.is_floating_point() for tensor in tensors(inputs)):
        raise ValueError(f"the inputs {shapes(inputs)} are whole numbers or bools, of which none can be masked with 0")

    def masked(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        kept = torch.rand(tensor.shape, generator=generator) >= ratio
        return tensor.where(kept.to(tensor.device), 0.0)

    return mapped(masked, inputs)
