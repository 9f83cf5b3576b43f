"""Keeps the gradients of a model's own ``autograd.Function`` classes in a trace.

torch.export records the operators of ``forward`` and loses ``backward``. Where a backward pass multiplies each position of the incoming
gradient by something that depends on the inputs, ordinary operators say the same: with d = x - x.detach(), which is 0 and has the gradient
1, ``forward(x.detach()) + backward(d)`` has the value of ``forward``, exactly, and the gradient of ``backward``. Spikes with surrogate
gradients, quantisers and gradient reversal are of this kind. Whether a Function is, is tried on the tensors that the model calls it with.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, _is_setup_context_defined, _SingleLevelFunction

_TOLERANCE = 1e-4
"""Largest difference of gradients that counts as rounding, relative to the largest gradient."""
_CALLS = 3
"""How many calls of a Function are tried; the first may be on a constant state."""
_FAR = 100.0
"""By how much inputs are scaled to see whether a backward pass overflows."""
_SCALES = (1.0, 1e3)
"""Sizes of the incoming gradients that are tried: some backward passes clip them."""
_Gradients = Sequence[Tensor | None]


class _Refused(Exception):
    """Says why a backward pass cannot be written with ordinary operators."""


class _Needless(Exception):
    """Says that the operators of ``forward`` have the right gradient by themselves."""


class _Context:
    """What ``forward`` and ``backward`` share, as the ``ctx`` of torch, without a part in autograd.

    Attributes:
        saved_tensors: what ``save_for_backward`` was given.
        needs_input_grad: True for the tensors of floating point.
    """

    def __init__(self, args: Sequence[Any]) -> None:
        self.saved_tensors: tuple[Tensor | None, ...] = ()
        self.needs_input_grad = tuple(_floating(value) for value in args)

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        pass

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        raise _Refused("it marks its output as not differentiable")

    def mark_dirty(self, *tensors: Tensor) -> None:
        raise _Refused("it changes its input in place")

    def set_materialize_grads(self, value: bool) -> None:
        pass


@dataclass(frozen=True)
class Finding:
    """What was found about a Function and the numbers it is called with.

    Attributes:
        name: where the Function is defined.
        keeps: whether a trace writes it with its own backward pass.
        guarded: whether that backward pass overflows at large inputs, which must not reach the value.
        reason: why a trace loses its backward pass; empty if it does not.
    """

    name: str
    keeps: bool = False
    guarded: bool = False
    reason: str = ""

    def and_also(self, other: Finding) -> Finding:
        """Return what holds for the calls of two findings."""
        reason = self.reason or other.reason
        if not reason and self.keeps != other.keeps:
            reason = "it is proportional to the incoming gradient in some calls only"
        return Finding(self.name, self.keeps and other.keeps, self.guarded or other.guarded, reason)


@dataclass
class OwnBackwards:
    """The Functions that a model calls, and whether a trace can keep their backward passes.

    Attributes:
        findings: by Function and the arguments that are not tensors.
    """

    findings: dict[Any, Finding] = field(default_factory=dict)

    @contextmanager
    def tried(self) -> Generator[None]:
        """Within the block, try each Function that is called, on copies of the tensors of its first calls."""
        tries = Counter[Any]()

        def trying(function: type[Function], args: tuple[Any, ...]) -> Any:
            key = _key(function, args)
            if tries[key] < _CALLS:
                tries[key] += 1
                found = _judged(function, args)
                self.findings[key] = self.findings.get(key, found).and_also(found)
            return _applied(function, args)

        with _intercepted(trying):
            yield

    @contextmanager
    def kept(self, phase: str) -> Generator[None]:
        """Within the block, Functions are called in the form that keeps their gradient, if ``phase`` is ``train``."""

        def keeping(function: type[Function], args: tuple[Any, ...]) -> Any:
            found = self.findings.get(_key(function, args)) or self._similar(function)
            if found is None or not found.keeps:
                return _applied(function, args)
            return _kept(function, args, found.guarded)

        with _intercepted(keeping if phase == "train" else _applied):
            yield

    def _similar(self, function: type[Function]) -> Finding | None:
        """Find what is known about a Function with other arguments: some are made anew in each call."""
        return next((found for key, found in self.findings.items() if key[0] is function), None)

    def lost(self) -> str:
        """Return a sentence for each Function whose backward pass a trace loses; empty if there is none."""
        reasons = {found.name: found.reason for found in self.findings.values() if found.reason}
        return "".join(f"The backward pass of {name} is lost: {reason}. " for name, reason in reasons.items())


@contextmanager
def _intercepted(called: Callable[[type[Function], tuple[Any, ...]], Any]) -> Generator[None]:
    """Call ``called`` in place of a Function.

    Not ``Function.apply`` is replaced but what it calls, because models keep bound methods such as ``Spike.apply``.
    """

    def apply(function: type[Function], *args: Any) -> Any:
        return called(function, args)

    _SingleLevelFunction.apply = classmethod(apply)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del _SingleLevelFunction.apply  # type: ignore[attr-defined]


def _applied(function: type[Function], args: tuple[Any, ...]) -> Any:
    """Call the Function as torch does."""
    return super(_SingleLevelFunction, function).apply(*args)  # type: ignore[misc]


def _key(function: type[Function], args: tuple[Any, ...]) -> Any:
    plain = (bool, int, float, str, type(None), torch.dtype)
    return function, *(
        Tensor if isinstance(x, Tensor) else (type(x), x) if isinstance(x, plain) else id(x) for x in args
    )


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


# --- the form that keeps the gradient


def _kept(function: type[Function], args: tuple[Any, ...], guarded: bool) -> Tensor:
    """Return the value of the Function, with the gradient of its backward pass.

    Raises:
        _Refused: If the Function is none that this is possible for.
    """
    context, out = _forward(function, tuple(x.detach() if isinstance(x, Tensor) else x for x in args))
    for place, x in enumerate(args):
        if _floating(x):
            gradient = _backward(function, context, x - x.detach(), len(args))[place]
            if gradient is not None:
                out = out + (gradient.nan_to_num() if guarded else gradient).to(out.dtype)
    return out


def _forward(function: type[Function], args: tuple[Any, ...]) -> tuple[_Context, Tensor]:
    context = _Context(args)
    if _is_setup_context_defined(function.setup_context):
        out = function.forward(*args)
        function.setup_context(context, args, out)
    else:
        out = function.forward(context, *args)
    if not isinstance(out, Tensor):
        raise _Refused(f"it returns {type(out).__name__} in place of one tensor")
    return context, out


def _backward(function: type[Function], context: _Context, gradient: Tensor, count: int) -> _Gradients:
    """Call the backward pass itself: ``once_differentiable`` around it would keep autograd out."""
    found = inspect.unwrap(function.backward)(context, gradient)
    every = found if isinstance(found, tuple) else (found,)
    return (*every, *[None] * (count - len(every)))


# --- trying it


def _judged(function: type[Function], args: tuple[Any, ...]) -> Finding:
    name = f"{function.__module__}.{function.__qualname__}"
    if function.__module__.partition(".")[0] in {"torch", "sparsify"}:
        return Finding(name)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        copies = tuple(
            x.detach().clone().requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x for x in args
        )
        try:
            _Trial(function, copies).check()
            return Finding(name, keeps=True, guarded=_overflows(function, copies))
        except _Refused as refused:
            return Finding(name, reason=str(refused))
        except _Needless:
            return Finding(name)
        except Exception as error:  # the user's code, which may raise anything when it is called in another way
            return Finding(name, reason=f"it could not be tried ({type(error).__name__}: {error})")


class _Trial:
    """One call of a Function, and the gradients of its backward pass for a few incoming ones."""

    def __init__(self, function: type[Function], args: tuple[Any, ...]) -> None:
        self.function, self.args = function, args
        out = _applied(function, args)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            raise _Refused(f"it returns {out.dtype if isinstance(out, Tensor) else type(out).__name__}")
        self.out = out
        self.incoming = [scale * _spread(out, seed) for seed, scale in enumerate(_SCALES)]
        self.own = [self.gradients(g) for g in self.incoming]

    def check(self) -> None:
        """Check that the form of `_kept` has the value and the gradients of the Function.

        Raises:
            _Needless: If it has not, and the operators of ``forward`` have.
            _Refused: If neither has.
        """
        try:
            self._check_shapes()
            self._check_positions()
            if not self._same(_kept(self.function, self.args, guarded=True)):
                raise _Refused("it does more than operators on the incoming gradient")
        except _Refused:
            with suppress(_Refused):
                if self._same(_forward(self.function, self.args)[1]):
                    raise _Needless from None
            raise

    def gradients(self, incoming: Tensor, out: Tensor | None = None) -> _Gradients:
        """Compute the gradients of all floating-point arguments."""
        out, leaves = self.out if out is None else out, [x for x in self.args if _floating(x)]
        if not out.requires_grad or not leaves:
            return (None,) * len(leaves)
        return torch.autograd.grad(out, leaves, incoming, retain_graph=True, allow_unused=True)

    def _same(self, out: Tensor) -> bool:
        if out.shape != self.out.shape or out.dtype != self.out.dtype or not _near(out, self.out):
            return False
        return all(_agree(self.gradients(g, out), own) for g, own in zip(self.incoming, self.own, strict=True))

    def _check_shapes(self) -> None:
        places = [place for place, x in enumerate(self.args) if _floating(x)]
        for place, gradient in zip(places, self.own[0], strict=True):
            if gradient is not None and gradient.shape != self.out.shape:
                raise _Refused(
                    f"it gives a gradient of shape {list(gradient.shape)} to argument {place}, and the output has shape "
                    f"{list(self.out.shape)}"
                )

    def _check_positions(self) -> None:
        """Refuse what is more than a multiplication of each position of the incoming gradient."""
        (first, second), (own, _), larger = self.incoming, self.own, _SCALES[1]
        if not _agree(self.gradients(first), own):
            raise _Refused("two calls with the same input give different gradients")
        half = (_spread(self.out, 2) > 0).to(self.out.dtype)
        if not _agree(self.gradients(first * half), [g if g is None else g * half for g in own]):
            raise _Refused("a position of the incoming gradient changes the gradient of other positions")
        total = [a if a is None or b is None else a + b for a, b in zip(*self.own, strict=True)]
        scaled = [g if g is None else g * larger for g in own]
        if not _agree(self.gradients(first + second), total) or not _agree(self.gradients(first * larger), scaled):
            raise _Refused("it is not proportional to the incoming gradient")


def _overflows(function: type[Function], args: tuple[Any, ...]) -> bool:
    """Return whether the gradient is not finite for inputs far from 0, as exp(-a x) / (1 + exp(-a x))² is not."""
    for scale in (_FAR, -_FAR):
        far = tuple((x.detach() * scale).requires_grad_() if _floating(x) else x for x in args)
        try:
            if not _kept(function, far, guarded=False).isfinite().all():
                return True
        except Exception:  # the user's code, which may refuse such inputs
            return True
    return False


def _spread(like: Tensor, seed: int) -> Tensor:
    """Make an incoming gradient with entries of both signs, [-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(like.shape, generator=generator, dtype=torch.float64) * 2 - 1).to(like.device, like.dtype)


def _agree(have: _Gradients, want: _Gradients) -> bool:
    return all(
        a is b if a is None or b is None else a.shape == b.shape and _near(a, b)
        for a, b in zip(have, want, strict=True)
    )


def _near(have: Tensor, want: Tensor) -> bool:
    """Compare where both are finite: a gradient that overflows does so at other inputs when it is scaled."""
    finite = have.detach().isfinite() & want.detach().isfinite()
    have, want = have.detach()[finite], want.detach()[finite]
    scale = float(want.abs().max()) if want.numel() else 0.0
    return torch.allclose(have, want, rtol=0, atol=max(_TOLERANCE, 4 * torch.finfo(want.dtype).eps) * scale)
