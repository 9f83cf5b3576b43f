"""The building blocks of a program: stages, tensor specs, sites, and the operators of this package."""

from __future__ import annotations

import enum
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sparsify.ir.gradients import with_masked_gradient
from sparsify.parts.layouts import Layout

PHASES = ("train", "eval")
MADE_BY = "heads"
"""Metadata of an output node: by name of an output, the calibration head that makes it. A name is data, and may be of no head here."""
LEVEL = "level"
"""Metadata of an output node: the level that its calibration head was fitted for, in (0, 1)."""


class Stage(enum.Enum):
    """How far a program has come. Each stage has its rules (`sparsify.ir.verifier`)."""

    TRACED = "traced"
    MASKED = "masked"
    FOLDED = "folded"
    DEPLOYED = "deployed"


def phases_of(stage: Stage) -> tuple[str, ...]:
    """Return the phases that a program of a stage has; a deployed program has no train phase."""
    return PHASES[1:] if stage is Stage.DEPLOYED else PHASES


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a value. A varying dimension is a string: ``"N"`` is the batch, ``"2*N"`` is twice the batch."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def of_shape(self, shape: Sequence[int | str]) -> TensorSpec:
        """Return the spec of a value of another shape."""
        return TensorSpec(self.name, tuple(shape), self.dtype)

    def __str__(self) -> str:
        short = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}.get(self.dtype, self.dtype)
        short = short.replace("int", "i") if short.startswith(("int", "uint")) else short
        return f"{short}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class WeightSite:
    """A parameter of two dimensions or more.

    Attributes:
        name: the qualified name in the user's model; of a tied weight, its first name.
        kind: the product that reads it: ``linear``, ``conv``, ``conv-transpose``, ``matmul``, ``bilinear``, ``recurrent``,
            ``embedding`` or ``embedding-bag``; ``none`` where no product reads it.
        shape: of the parameter; [O, I, *K] for linear and conv, [gates x H, I] for recurrent.
        owner: qualified name of the module that uses it first.
        macs: multiply-accumulates per example over all uses; 0 for an embedding, and for a weight from which another weight is computed.
        uses: number of products and lookups that read it.
        groups: number of groups of a convolution, else 1.
        skip: why `insert-masks` keeps it dense by default, or None.
        possible: whether it can have a mask at all; if not, ``skip`` says why.
        direct: whether products read it in its own shape and order, not transposed, cut, joined or reshaped.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    owner: str
    macs: int
    uses: int
    groups: int = 1
    skip: str | None = None
    possible: bool = True
    direct: bool = True


@dataclass(frozen=True)
class MaskSite:
    """A weight with a mask: qualified names of both, the pattern's spelling, and dense MACs per example."""

    weight: str
    mask: str
    pattern: str
    macs: int


@dataclass(frozen=True)
class RandomMaskSite:
    """A weight that training reads through a random mask: qualified names of both, share of hidden weights, whether rescaled."""

    weight: str
    visible: str
    rate: float
    rescale: bool

    @property
    def scale(self) -> float:
        """What a visible weight is multiplied by."""
        return 1.0 / (1.0 - self.rate) if self.rescale else 1.0


@dataclass(frozen=True)
class BatchNormSite:
    """Running statistics that training updates: names of the two buffers, and the weight of the newest batch."""

    mean: str
    variance: str
    momentum: float


@dataclass(frozen=True)
class Costs:
    """Counts of a program.

    Attributes:
        params: all parameters, each tied tensor once.
        maskable: positions of the weights that have a mask.
        active: positions of these weights whose mask is True.
        macs_dense: multiply-accumulates per example of all matrix products, as if every weight were dense. Values that are computed only
            from parameters are not counted, because they are computed once and not per example.
        macs_active: multiply-accumulates per example if products skip every inactive weight.
        unknown: operators that may multiply matrices but are not counted.
    """

    params: int
    maskable: int
    active: int
    macs_dense: int
    macs_active: int
    unknown: tuple[str, ...] = ()

    @property
    def density(self) -> float:
        """Active / maskable; 1.0 without masks."""
        return self.active / self.maskable if self.maskable else 1.0

    @property
    def model_density(self) -> float:
        """The share of all parameters that is active, in [0, 1]; parameters without a mask count as active."""
        return (self.params - self.maskable + self.active) / self.params if self.params else 1.0


def apply_mask(weight: Tensor, mask: Tensor, pattern: str) -> Tensor:
    """``weight * mask``: the reference semantics of a mask. ``pattern`` documents which positions may be active together."""
    del pattern
    return weight * mask


def vouch(weight: Tensor, mask: Tensor) -> None:
    """Promise that ``weight`` is 0 where ``mask`` is False, so that a lowered mask may read the weight without multiplying.

    The promise ends with the next write to the weight, because torch counts the writes to a tensor. Copies of a mask carry no promise.
    """
    mask.vouched = (id(weight), weight._version)  # type: ignore[attr-defined]


@contextmanager
def vouched(weight: Tensor, mask: Tensor) -> Generator[None]:
    """Promise as `vouch` does, only within the block."""
    before = mask.__dict__.get("vouched")
    vouch(weight, mask)
    try:
        yield
    finally:
        mask.vouched = before  # type: ignore[attr-defined]


def is_vouched(weight: Tensor, mask: Tensor) -> bool:
    """Return whether `vouch` was called for ``weight`` and nothing has written to it since; never while torch compiles."""
    if torch.compiler.is_compiling():
        return False
    given = mask.__dict__.get("vouched")
    return given is not None and given == (id(weight), weight._version)


class _MaskedValue(torch.autograd.Function):
    """``weight * mask``, whose gradient a tap after it masks."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def masked_view(weight: Tensor, mask: Tensor, pattern: str, gradient: Literal["masked", "tapped"] = "masked") -> Tensor:
    """Apply a mask. If a trainer promises that inactive weights are 0 (`vouch`), read the weight directly and mask only its gradient.

    Without such a promise (an average of weights, a copy, loaded values), and when compiled, it multiplies by the mask.

    Args:
        weight: any shape.
        mask: bool, the shape of ``weight``.
        pattern: which positions may be active together; documentation.
        gradient: ``masked`` masks the incoming gradient; ``tapped`` leaves it to the `GradientTap` after this node. Files of earlier
            versions have other words for ``masked``.
    """
    del pattern
    clean = is_vouched(weight, mask)
    if gradient == "tapped":
        return weight if clean else _MaskedValue.apply(weight, mask)  # type: ignore[no-any-return]
    return with_masked_gradient(weight, mask) if clean else weight * mask


def compact_view(weight: Tensor, mask: Tensor, pattern: str, inputs: Tensor, places: Tensor | None = None) -> Tensor:
    """Return a weight that is stored compact: it stands for ``dense weight * mask``, whose other positions are 0 and not stored.

    Args:
        weight: [O, k, *K], the active positions; see `sparsify.parts.layouts.Layout`.
        mask: bool [O, I, *K].
        pattern: spelling of the grouped pattern of the mask.
        inputs: int64 [G, k], the inputs that each of the G groups reads.
        places: int64 [O], the row of ``weight`` that holds each output; None: its rows are in the natural order.
    """
    del mask, pattern, inputs, places
    return weight


MASK_OPERATORS = (apply_mask, masked_view, compact_view)


def apply_random_mask(
    weight: Tensor,
    visible: Tensor,
    rate: float,
    rescale: bool,
    inputs: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """``weight * visible``, divided by ``1 - rate`` with ``rescale``; only in the train phase.

    Args:
        weight: any shape, its mask applied already.
        visible: bool, the shape of the dense weight; drawn anew each step, False with probability ``rate``.
        rate: share of hidden positions, in [0, 1).
        rescale: keep the expected value.
        inputs, places: as for `compact_view`, if the weight is stored compact.
    """
    if inputs is not None:
        order = None if places is None else places.argsort()
        visible = Layout(tuple(visible.shape), inputs, order).gather(visible)
    shown = weight * visible
    return shown / (1.0 - rate) if rescale else shown


class GradientTap(nn.Module):
    """Gives access to the dense gradient dL/d(weight × mask) of the value that flows through, when armed.

    Attributes:
        armed: whether forward passes from now on record the gradient in their backward pass.
        in_grad: leave the dense gradient unmasked in the weight's ``.grad`` instead of recording a copy. This costs no memory, but is only
            safe on steps whose ``.grad`` no optimizer reads, and only works for lowered masks.
        passed: whether a value flowed through since the last `clear` while the tap was armed with ``in_grad``.
        recorded: the sum recorded since the last `clear`, or None.
        holds_in_grad: whether ``in_grad`` is possible.
    """

    holds_in_grad: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.armed = False
        self.in_grad = False
        self.passed = False
        self.recorded: Tensor | None = None

    @property
    def arrived(self) -> bool:
        """Whether a gradient was recorded since the last `clear`."""
        return self.recorded is not None

    @property
    def gradient(self) -> Tensor | None:
        """The sum recorded since the last `clear`, or None."""
        return self.recorded

    def is_bounded(self) -> bool:
        """Return whether the gradient is known to be finite without computing it; False if that is not known."""
        return False

    def forward(self, value: Tensor, mask: Tensor | None = None, *earlier: str) -> Tensor:
        """Return ``value``. With a ``mask``, the value is a lowered weight, and the tap masks its gradient.

        Programs of earlier versions pass one more argument, which is ignored.
        """
        del earlier
        if not value.requires_grad:
            return value
        if mask is None:
            return _Record.apply(value, self) if self.armed else value  # type: ignore[no-any-return]
        if self.armed and self.in_grad:
            self.passed = True
            return value
        masked = with_masked_gradient(value, mask)
        return _Record.apply(masked, self) if self.armed else masked  # type: ignore[no-any-return]

    def clear(self) -> None:
        self.recorded, self.passed = None, False


class RandomnessRecord(nn.Module):
    """Records the random generator's state at a forward pass, and can replay it, so that later passes draw the same random numbers.

    Attributes:
        replaying: True: forward passes start from the recorded state. False: they record their own.
        state: recorded state of the generator of the value's device; None before the first forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replaying = False
        self.state: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        """Return ``value`` unchanged."""
        if self.replaying and self.state is not None:
            set_random_state(self.state, value.device)
        elif not self.replaying:
            self.state = random_state(value.device)
        return value


HOOKS = (GradientTap, RandomnessRecord)
"""Modules that a pass puts into a graph."""


def random_state(device: torch.device) -> Tensor:
    """Return the state of torch's global generator of a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.random.get_rng_state()


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Set what `random_state` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.random.set_rng_state(state)


class _Record(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, tap: GradientTap) -> Tensor:
        ctx.tap = tap
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        gradient = grad_outputs[0]
        tap: GradientTap = ctx.tap
        tap.recorded = gradient.detach().clone() if tap.recorded is None else tap.recorded + gradient.detach()
        return gradient, None
