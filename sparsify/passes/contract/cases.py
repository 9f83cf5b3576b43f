"""Small models, plain and awkward, that passes are tried on. Each runs in milliseconds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.ir import Program, trace
from sparsify.passes.contract import awkward

SAMPLES = 4


@dataclass(frozen=True)
class Case:
    """A model, how to build it with seeded weights, and example inputs.

    Attributes:
        name: unique among the cases that are tried together.
        model: builds the model; it is called with torch's seed set to 1.
        args: positional inputs of the trace, with at least two samples.
        task: name of the task of its output; None: no task, and the output is called ``logits``.
    """

    name: str
    model: Callable[[], nn.Module]
    args: tuple[Any, ...]
    task: str | None = None

    def build(self) -> nn.Module:
        """Build the model with seeded weights."""
        torch.manual_seed(1)
        return self.model()

    def trace(self) -> Program:
        """Trace ``build()`` with ``args``; the trace is made once, and each caller gets a copy."""
        if self not in _TRACED:
            _TRACED[self] = trace(self.build(), self.args, name=self.name, task=self.task)
        program = _TRACED[self].clone()
        torch.manual_seed(1)
        return program

    def __hash__(self) -> int:
        return hash((self.name, self.model))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Case) and (self.name, self.model) == (other.name, other.model)


_TRACED: dict[Case, Program] = {}


def normal(*shape: int) -> Tensor:
    """Draw inputs from a normal distribution; every call returns the same values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def tokens(*shape: int, below: int) -> Tensor:
    """Draw whole numbers in [0, below) uniformly; every call returns the same values."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(sum(shape)))


_IMAGE = normal(SAMPLES, 3, 6, 6)
_FLAT = normal(SAMPLES, 24)
_ROWS = normal(SAMPLES, 5, 8)


def _case(name: str, model: Callable[[], nn.Module], args: tuple[Tensor, ...], task: str | None = None) -> Case:
    return Case(name, functools.partial(awkward.with_random_norms, model), args, task)


CASES: tuple[Case, ...] = (
    _case("linear", awkward.linear, (_FLAT,), task="regression"),
    _case("one_dimension", awkward.OneDimension, (normal(SAMPLES, 3, 12),)),
    _case("three_dimensions", awkward.three_dimensions, (normal(SAMPLES, 1, 4, 4, 4),), task="regression"),
    _case("transposed", awkward.Transposed, (_IMAGE,), task="regression"),
    _case("in_place", awkward.InPlace, (_IMAGE,)),
    _case("computed_bias", awkward.ComputedBias, (_IMAGE,)),
    _case("norm_twice", awkward.NormTwice, (_IMAGE,)),
    _case("depthwise_norm", awkward.DepthwiseNorm, (_IMAGE,)),
    _case("tied_and_shared", awkward.TiedAndShared, (_FLAT,)),
    _case("many_ends", awkward.ManyEnds, (_FLAT, normal(SAMPLES, 7))),
    _case("no_batch", awkward.NoBatch, (_FLAT, normal(16))),
    _case("frozen", awkward.Frozen, (_FLAT,)),
    _case("computed_weight", awkward.ComputedWeight, (_FLAT,)),
    _case("lstm", awkward.recurrent(nn.LSTM), (normal(SAMPLES, 2, 8),)),
    _case("gru", awkward.recurrent(nn.GRU), (normal(SAMPLES, 2, 8),)),
    _case("attention_norm", awkward.AttentionNorm, (_ROWS,)),
    _case("token_table", awkward.TokenTable, (tokens(SAMPLES, 5, below=11),)),
    _case("wide_linear", awkward.wide_linear, (_FLAT,), task="regression"),
    _case("wide_tokens", awkward.WideTokens, (_ROWS,)),
    _case("wide_normed", awkward.WideNormed, (_ROWS,)),
    _case("wide_ends", awkward.WideEnds, (_FLAT,)),
    _case("wide_map", awkward.WideMap, (_IMAGE,)),
    _case("wide_conv", awkward.WideConv, (_IMAGE,)),
    _case("wide_residual", awkward.WideResidual, (_IMAGE,)),
    _case("wide_sequence", awkward.wide_sequence, (normal(SAMPLES, 3, 12),)),
    _case("unread", awkward.unread, (_FLAT,)),
)
