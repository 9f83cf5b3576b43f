"""What a program is made of: stages, tensor specs, sites, and the operators that are ours."""

from __future__ import annotations

import enum
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsify.ir.gradients import with_masked_gradient

PHASES = ("train", "eval")
MADE_BY = "heads"
"""Metadata of an output node: by name of an output, the calibration head that makes it. A name is data, and may be of no head here."""


class Stage(enum.Enum):
    """How far a program has come. Each stage has its rules (`sparsify.ir.verifier`)."""

    TRACED = "traced"
    MASKED = "masked"
    FOLDED = "folded"
    DEPLOYED = "deployed"


def phases_of(stage: Stage) -> tuple[str, ...]:
    """The phases that a program of a stage has: a deployed one is run, and trained no more."""
    return PHASES[1:] if stage is Stage.DEPLOYED else PHASES


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a value. A dynamic dimension is text: ``"N"`` is the batch, ``"2*N"`` twice of it."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        short = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}.get(self.dtype, self.dtype)
        short = short.replace("int", "i") if short.startswith(("int", "uint")) else short
        return f"{short}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class WeightSite:
    """A parameter of two dimensions or more.

    Attributes:
        name: fully qualified name, the user's own (the first one, where several names are tied).
        kind: the product that reads it: ``linear``, ``conv``, ``conv-transpose``, ``matmul``, ``bilinear``, ``recurrent``,
            ``embedding`` or ``embedding-bag``; ``none`` where no product reads it.
        shape: of the parameter; [O, I, *K] for linear and conv, [gates x H, I] for recurrent.
        owner: qualified name of the module that used it first.
        macs: multiply-accumulates per example over all uses; 0 for an embedding, and where another weight is computed from it.
        uses: number of products and lookups that read it.
        groups: of a convolution, else 1.
        skip: why `insert-masks` keeps it dense unless told otherwise, or None.
        possible: whether it can have a mask at all; where not, ``skip`` says why.
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
        active: those of them whose mask is True.
        macs_dense: multiply-accumulates per example of all products of matrices, as if every weight were dense. What is computed
            from parameters and nothing else is not counted: it is done once, not for every example.
        macs_active: those left where a product skips every inactive weight.
        unknown: operators that may multiply matrices, and are not counted.
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
        """The share of all parameters that is active; those without a mask are."""
        return (self.params - self.maskable + self.active) / self.params if self.params else 1.0


def apply_mask(weight: Tensor, mask: Tensor, pattern: str) -> Tensor:
    """``weight * mask``: the reference semantics of a mask. ``pattern`` documents which positions may be active together."""
    del pattern
    return weight * mask


def vouch(weight: Tensor, mask: Tensor) -> None:
    """Say that ``weight`` is 0 where ``mask`` is False: a lowered mask reads it as it is until something is written to it.

    torch counts the writes to a tensor, so a vouch ends with the next one. Copies of a mask have none.
    """
    mask.vouched = (id(weight), weight._version)  # type: ignore[attr-defined]


@contextmanager
def vouched(weight: Tensor, mask: Tensor) -> Generator[None]:
    """`vouch` for as long as the block runs: a lowered mask then reads other values as they are given."""
    before = mask.__dict__.get("vouched")
    vouch(weight, mask)
    try:
        yield
    finally:
        mask.vouched = before  # type: ignore[attr-defined]


def is_vouched(weight: Tensor, mask: Tensor) -> bool:
    """Whether ``weight`` was vouched for, and nothing was written to it since."""
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
    """`apply_mask` that reads a weight directly where a trainer vouches that it is 0 where inactive, and masks only its gradient.

    Without a vouch (an average of weights, a copy, values that were loaded), and when compiled, it multiplies by the mask.

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


MASK_OPERATORS = (apply_mask, masked_view)


def apply_random_mask(weight: Tensor, visible: Tensor, rate: float, rescale: bool) -> Tensor:
    """``weight * visible``, divided by ``1 - rate`` with ``rescale``; only in the train phase.

    Args:
        weight: any shape, its mask applied already.
        visible: bool, the shape of ``weight``; drawn anew each step, False with probability ``rate``.
        rate: share of hidden positions, in [0, 1).
        rescale: keep the expected value.
    """
    shown = weight * visible
    return shown / (1.0 - rate) if rescale else shown


class GradientTap(nn.Module):
    """Gives access to the dense gradient dL/d(weight × mask) of the value that flows through, when armed.

    Attributes:
        armed: act in the backward pass of forwards made from now on.
        in_grad: leave the dense gradient in the weight's ``.grad``, unmasked, instead of recording a copy. It costs no memory, and
            is for steps whose ``.grad`` no optimizer will see. Only for lowered masks.
        passed: whether a value flowed through since the last `clear`, armed with ``in_grad``.
        gradient: the sum recorded since the last `clear`, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.armed = False
        self.in_grad = False
        self.passed = False
        self.gradient: Tensor | None = None

    def forward(self, value: Tensor, mask: Tensor | None = None, *earlier: str) -> Tensor:
        """``value`` itself. With a ``mask``, the value is a lowered weight, and its gradient is masked here.

        Files of earlier versions give an argument more, which is not read.
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
        self.gradient, self.passed = None, False


class RandomnessRecord(nn.Module):
    """Remembers the state of the random generator of a forward pass, and can give the next ones the same random numbers.

    Attributes:
        replaying: forwards begin from the remembered state instead of remembering theirs; the generator goes on from there.
        state: of the generator of the device that the value lies on, or None before the first forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replaying = False
        self.state: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        """``value`` itself."""
        if self.replaying and self.state is not None:
            set_random_state(self.state, value.device)
        elif not self.replaying:
            self.state = random_state(value.device)
        return value


HOOKS = (GradientTap, RandomnessRecord)
"""Modules that a pass puts into a graph."""


def random_state(device: torch.device) -> Tensor:
    """The state of torch's global generator of a device."""
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
        tap.gradient = gradient.detach().clone() if tap.gradient is None else tap.gradient + gradient.detach()
        return gradient, None
