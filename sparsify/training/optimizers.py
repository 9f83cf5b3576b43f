"""The optimizers of a loop as one, and what has to be known of them before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.methods import Method

Optimizer = torch.optim.Optimizer


class States(Mapping[Any, Any]):
    """The state of each parameter, in whichever optimizer holds it."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers

    def __getitem__(self, parameter: Any) -> Any:
        for optimizer in self._optimizers:
            if parameter in optimizer.state:
                return optimizer.state[parameter]
        raise KeyError(parameter)

    def __iter__(self) -> Iterator[Any]:
        return (parameter for o in self._optimizers for parameter in o.state)

    def __len__(self) -> int:
        return sum(len(o.state) for o in self._optimizers)

    def __contains__(self, parameter: object) -> bool:
        return any(parameter in o.state for o in self._optimizers)

    def clear(self) -> None:
        """Forget everything."""
        for optimizer in self._optimizers:
            optimizer.state.clear()


class Optimizers:
    """One optimizer or several, stepped in turn.

    Attributes:
        each: as they were given.
        evaluates: whether a step evaluates the batch itself, by a closure (LBFGS).
    """

    __class__ = property(lambda self: Optimizer)  # type: ignore[assignment]  # torch's schedulers ask for it

    def __init__(self, given: Optimizer | Iterable[Optimizer]) -> None:
        single = hasattr(given, "param_groups") or not isinstance(given, Iterable)
        self.each: tuple[Optimizer, ...] = (
            (cast(Optimizer, given),) if single else tuple(cast(Iterable[Optimizer], given))
        )
        self._evaluating = [hasattr(o, "param_groups") and _needs_closure(o) for o in self.each]
        self.evaluates = any(self._evaluating)
        self.state = States(self.each)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all."""
        return [group for optimizer in self.each for group in optimizer.param_groups]

    @property
    def defaults(self) -> dict[str, Any]:
        """Settings of all, those of the first where they differ."""
        return {key: value for optimizer in reversed(self.each) for key, value in optimizer.defaults.items()}

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter held, in order."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def gradients(self) -> list[Tensor]:
        """The values of the gradients that are there, those of sparse ones included."""
        grads = [p.grad for optimizer in self.each for group in optimizer.param_groups for p in group["params"]]
        found = [gradient for gradient in grads if gradient is not None]
        return [gradient._values() if gradient.is_sparse else gradient for gradient in found]

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Let each step; those that evaluate the batch get the closure."""
        for optimizer, evaluates in zip(self.each, self._evaluating, strict=True):
            if evaluates:
                assert closure is not None
                optimizer.step(closure)
            else:
                optimizer.step()

    def zero_grad(self) -> None:
        """As of an optimizer."""
        for optimizer in self.each:
            optimizer.zero_grad()

    def check(self, program: Program) -> None:
        """Refuse optimizers that do not train the program.

        Raises:
            TrainingError: If they are none, or a trainable parameter is held by none of them, or by two.
        """
        if not self.each or not all(_steps(optimizer) for optimizer in self.each):
            kinds = ", ".join(type(optimizer).__name__ for optimizer in self.each) or "nothing"
            raise TrainingError(f"attach needs an optimizer, or a list of optimizers, found {kinds}.")
        if any(group.get("differentiable") for group in self.param_groups):
            raise TrainingError(
                "an optimizer was made with differentiable=True, which keeps the graph of its step; masks are applied in place after it. "
                "Make it with differentiable=False."
            )
        held = [id(parameter) for parameter in self.parameters()]
        trained = {name: p for name, p in program.named_parameters() if p.requires_grad}
        lost = [name for name, parameter in trained.items() if id(parameter) not in held]
        if len(lost) == len(trained):
            raise TrainingError(
                f"the optimizer does not hold {len(lost)} parameters of {program.name!r} ({', '.join(lost[:4])}); they would "
                f"never change. Build it over program.parameters() after tracing, and move the program first."
            )
        if lost:
            raise TrainingError(
                f"the optimizer does not hold {len(lost)} parameters of {program.name!r} ({', '.join(lost[:4])}); they would "
                f"never change. Add them to it or attach a list of optimizers. To train only a part, freeze the rest with "
                f"parameter.requires_grad_(False): frozen weights stay dense and as they are."
            )
        twice = [name for name, parameter in trained.items() if held.count(id(parameter)) > 1]
        if twice:
            raise TrainingError(
                f"{', '.join(twice[:4])} are held by two optimizers, or twice by one; each step would move them twice. "
                f"Give each parameter to one."
            )


def _steps(optimizer: object) -> bool:
    """Whether it is an optimizer, and not a trainer that has one already."""
    return hasattr(optimizer, "param_groups") and isinstance(getattr(optimizer, "state", None), Mapping)


def _needs_closure(optimizer: Optimizer) -> bool:
    """Whether ``step`` cannot be called without a closure."""
    parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def check_single_process(method: Method) -> None:
    """Refuse to make masks in several processes.

    Raises:
        TrainingError: If `torch.distributed` runs with more than one process and the method has masks.
    """
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    count = torch.distributed.get_world_size() if together else 1
    sparse = method.initial != "dense" or method.topology is not None
    if count > 1 and sparse:
        raise TrainingError(
            f"torch.distributed runs {count} processes: each would rank weights by the gradients of its own batches, and their masks would "
            f"differ. Train in one process, or train densely in several and prune afterwards in one."
        )
