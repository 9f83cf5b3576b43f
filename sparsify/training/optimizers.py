"""Joins the optimizers of a loop into one, and checks them before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparsify.errors import TrainingError
from sparsify.ir import Program
from sparsify.methods import Method
from sparsify.parts.layouts import Layout, Positions
from sparsify.training.fused_steps import fused

Optimizer = torch.optim.Optimizer
BY_POSITION = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta,
    torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam, torch.optim.ASGD, torch.optim.Rprop,
)  # fmt: skip
"""Optimizers that treat each position of a weight on its own, whatever the weight's shape."""


class States(Mapping[Any, Any]):
    """The state of each parameter, taken from the optimizer that holds it."""

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
        """Clear the state of all parameters."""
        for optimizer in self._optimizers:
            optimizer.state.clear()


class Joined(Optimizer):
    """Several optimizers that behave like one: it has their parameter groups, state and settings. Schedulers and a GradScaler accept it.

    Attributes:
        each: the joined optimizers.
        state: the state of each parameter, taken from the optimizer that holds it.
    """

    def __init__(self, each: tuple[Optimizer, ...]) -> None:
        # Do not call Optimizer.__init__, which would make groups and state of its own.
        self.each = each
        self.state = States(each)  # type: ignore[assignment]

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The parameter groups of all optimizers."""
        return [group for optimizer in self.each for group in optimizer.param_groups]

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Default settings of all optimizers; the first one wins if they differ."""
        return {key: value for optimizer in reversed(self.each) for key, value in optimizer.defaults.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as any optimizer does."""
        for optimizer in self.each:
            optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse new groups.

        Raises:
            TrainingError: Always, because all parameters must be known when a method is attached.
        """
        raise TrainingError(
            f"parameters cannot be added during a run, found a group of {len(param_group)} entries. Add them to an optimizer before "
            f"sparsify.attach."
        )

    def _refuse(self, hook: Any) -> Any:
        raise TrainingError(
            f"{type(self).__name__} calls no hooks, and the optimizers that it is made of do, found {hook}. Register it with those that "
            f"were given to sparsify.attach."
        )

    register_step_pre_hook = register_step_post_hook = _refuse  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class Optimizers(Joined):
    """One optimizer or several, stepped in turn.

    Attributes:
        evaluates: whether a step evaluates the batch itself, by a closure (LBFGS).
    """

    def __init__(self, given: Optimizer | Iterable[Optimizer]) -> None:
        if isinstance(given, Optimizers):
            given = given.each
        single = hasattr(given, "param_groups") or not isinstance(given, Iterable)
        super().__init__((cast(Optimizer, given),) if single else tuple(cast(Iterable[Optimizer], given)))
        self._evaluating = [hasattr(o, "param_groups") and _needs_closure(o) for o in self.each]
        self.evaluates = any(self._evaluating)

    def state_dict(self) -> dict[str, Any]:
        """Return the state dicts of all optimizers under ``each``."""
        return {"each": [optimizer.state_dict() for optimizer in self.each]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave.

        Raises:
            TrainingError: If it has another number of optimizers.
        """
        states = state_dict.get("each", ())
        if len(states) != len(self.each):
            raise TrainingError(f"the saved state is of {len(states)} optimizers, and {len(self.each)} are attached.")
        for optimizer, state in zip(self.each, states, strict=True):
            optimizer.load_state_dict(state)

    def parameters(self) -> list[nn.Parameter]:
        """Return all parameters that the optimizers hold, in order."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def gradients(self) -> list[Tensor]:
        """Return the values of all existing gradients, including those of sparse gradients."""
        grads = [p.grad for optimizer in self.each for group in optimizer.param_groups for p in group["params"]]
        found = [gradient for gradient in grads if gradient is not None]
        return [gradient._values() if gradient.is_sparse else gradient for gradient in found]

    def convert(self, parameter: Tensor, convert: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        """Convert the entries of a parameter's state that have a shape, such as those with a value for each position."""
        state = self.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and tuple(value.shape) == shape:
                state[key] = convert(value)

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Step each optimizer; optimizers that evaluate the batch themselves get the closure."""
        for optimizer, evaluates in zip(self.each, self._evaluating, strict=True):
            if evaluates:
                assert closure is not None
                optimizer.step(closure)
            else:
                with fused(optimizer):
                    optimizer.step()

    def check(self, program: Program) -> None:
        """Refuse optimizers that do not train the program.

        Raises:
            TrainingError: If there are none, or a trainable parameter is held by none of them or by two.
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
                f"parameter.requires_grad_(False): frozen weights stay dense and unchanged."
            )
        twice = [name for name, parameter in trained.items() if held.count(id(parameter)) > 1]
        if twice:
            raise TrainingError(
                f"{', '.join(twice[:4])} are held by two optimizers, or twice by one; each step would move them twice. "
                f"Give each parameter to one."
            )


def dense_state(
    optimizer: Optimizer, saved: dict[str, Any], layouts: Mapping[int, Layout | Positions]
) -> dict[str, Any]:
    """Return a state dict of an optimizer in which compact entries are dense.

    Args:
        optimizer: the optimizer.
        saved: its state dict.
        layouts: the layouts of entries of the state, by the id of their parameter.
    """
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    dense = dict(saved["state"])
    for place, parameter in enumerate(held):
        layout = layouts.get(id(parameter))
        if layout is not None and place in dense:
            dense[place] = {key: _scattered(layout, value) for key, value in dense[place].items()}
    return {**saved, "state": dense}


def _scattered(layout: Layout | Positions, value: Any) -> Any:
    fits = isinstance(value, Tensor) and tuple(value.shape) == layout.compact_shape
    return layout.scatter(value) if fits else value


def by_position(optimizer: Optimizer) -> bool:
    """Return whether an optimizer treats each position of a weight on its own, so that it may be given any selection of them."""
    return type(optimizer) in BY_POSITION


def _steps(optimizer: object) -> bool:
    """Return whether an object is an optimizer and not a trainer, which already has one."""
    made = not isinstance(optimizer, Joined) and hasattr(optimizer, "param_groups")
    return made and isinstance(getattr(optimizer, "state", None), Mapping)


def _needs_closure(optimizer: Optimizer) -> bool:
    """Return whether ``step`` cannot be called without a closure."""
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
