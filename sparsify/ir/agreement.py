"""Guards of tracing: both phases of a program behave like the model at a second batch size, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsify.errors import TraceError
from sparsify.ir.program import PHASES, Program

RELATIVE_TOLERANCE = 1e-4


def compare(model: nn.Module, program: Program, example: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """Outputs of both phases, and gradients of the train phase, against the model at a second batch size."""
    args, kwargs = _grown(example) if program.dynamic_batch else example
    for phase in PHASES:
        training = phase == "train"
        runs: list[tuple[list[Tensor], list[Tensor | None]]] = []
        for callee in (model, program):
            callee.train(training)
            runs.append(_observe(callee, model, args, kwargs, gradients=training))
        (eager, eager_grads), (traced, traced_grads) = runs
        for index, (want, have) in enumerate(zip(eager, traced, strict=True)):
            if want.shape != have.shape or not _close(want, have):
                raise TraceError(
                    f"output {index} of the {phase} phase differs from the model at batch {batch_of((args, kwargs))}: shapes "
                    f"{list(have.shape)} and {list(want.shape)}, largest difference {_difference(want, have)}. The model "
                    f"depends on something the trace cannot see (a Python-side batch size, state or randomness)."
                )
        if not training:
            continue
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        lost = [
            n
            for n, want, have in zip(names, eager_grads, traced_grads, strict=True)
            if (want is None) != (have is None)
        ]
        if lost:
            raise TraceError(
                f"parameters {lost[:8]} receive a gradient in only one of the model and its trace. A custom autograd.Function "
                f"is lost by torch.export: write it as torch.library.custom_op with register_autograd, or as "
                f"hard + (soft - soft.detach())."
            )
        wrong = [
            n
            for n, w, h in zip(names, eager_grads, traced_grads, strict=True)
            if w is not None and h is not None and not _close(w, h)
        ]
        if wrong:
            raise TraceError(
                f"gradients of {wrong[:8]} differ between the model and its trace. A custom backward pass is lost by "
                f"torch.export: write it as torch.library.custom_op with register_autograd."
            )


def _observe(
    callee: Callable[..., Any], model: nn.Module, args: Any, kwargs: Any, *, gradients: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    with torch.random.fork_rng(devices=[]), untouched(model), torch.set_grad_enabled(gradients):
        torch.manual_seed(0)
        leaves = [x for x in pytree.tree_leaves(callee(*args, **kwargs)) if isinstance(x, Tensor)]
        parameters = [p for p in model.parameters() if p.requires_grad]
        grads: list[Tensor | None] = []
        if gradients:
            outputs = [x for x in leaves if x.is_floating_point() and x.requires_grad]
            weights = [torch.linspace(-1, 1, x.numel(), device=x.device, dtype=x.dtype).view_as(x) for x in outputs]
            given = (
                torch.autograd.grad(outputs, parameters, weights, allow_unused=True)
                if outputs
                else [None] * len(parameters)
            )
            grads = list(given)
    return [x.detach() for x in leaves], grads


def _close(want: Tensor, have: Tensor) -> bool:
    if not want.is_floating_point():
        return torch.equal(want, have)
    scale = float(want.abs().max()) if want.numel() else 0.0
    return torch.allclose(want, have, rtol=0, atol=RELATIVE_TOLERANCE * scale + 1e-12, equal_nan=True)


def _difference(want: Tensor, have: Tensor) -> str:
    return f"{float((want.float() - have.float()).abs().max()):.3g}" if want.shape == have.shape else "undefined"


@contextmanager
def untouched(model: nn.Module) -> Generator[None]:
    """Put buffers and the RNG back: a training-mode forward moves batch-norm statistics."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    rng = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(rng)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def batch_of(example: Any) -> int:
    sizes = [x.shape[0] for x in pytree.tree_leaves(example) if isinstance(x, Tensor) and x.ndim]
    if not sizes:
        raise TraceError(
            "the example inputs hold no tensor with a batch dimension. Give at least one tensor of shape [N, ...]."
        )
    return sizes[0]


def map_batch(example: Any, change: Callable[[Tensor], Tensor]) -> Any:
    batch = batch_of(example)
    return pytree.tree_map(
        lambda x: change(x) if isinstance(x, Tensor) and x.ndim and x.shape[0] == batch else x, example
    )


def _grown(example: Any) -> Any:
    return map_batch(example, lambda x: torch.cat([x, x[:1]]))
