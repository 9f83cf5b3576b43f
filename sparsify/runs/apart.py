"""The rehearsal of a grid in a process of its own: a model that ends its process ends that one, and is refused as any other."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from sparsify.errors import RecipeError, SparsifyError
from sparsify.runs.preflight import Progress, failing, model_of
from sparsify.runs.recipe import Recipe

LINGERS = 5.0
"""Seconds that a process with an answer has to end by itself; one that is killed leaves its semaphores, and a warning of Python's."""
REHEARSAL = "rehearsal"
"""Name of the process."""
AHEAD = (
    "torch.export._trace", "torch.onnx._internal.exporter._compat", "onnxscript.function_libs.torch_lib.ops", "sklearn.datasets",
    "matplotlib.backends.backend_svg", "sparsify.loading", "sparsify.training", "sparsify.calibration",
)  # fmt: skip
"""What every process of a grid imports, which takes seconds. None of it starts a thread, as onnxruntime does: a fork would lose it."""


def check_cells(recipes: Mapping[str, Recipe], on_decode: Progress | None = None) -> None:
    """Refuse a grid of which cells cannot be run (`sparsify.runs.preflight.failing`).

    Args:
        recipes: by the name of the cell.
        on_decode: called while images are decoded.

    Raises:
        RecipeError: Naming every cell that cannot be run, with the reason.
        SparsifyError: If data cannot be used.
    """
    failed, left = dict[str, str](), dict(recipes)
    while left:
        found, at, ended = _rehearsed(left, on_decode)
        failed |= found
        if at is None:
            break
        model = model_of(left[at])  # what ended the process ends it again for each cell of this model
        failed |= {cell: f"its rehearsal {ended}." for cell, recipe in left.items() if model_of(recipe) == model}
        left = {cell: recipe for cell, recipe in left.items() if model_of(recipe) != model}
    if failed:
        cells = dict[str, list[str]]()
        for cell in filter(failed.__contains__, recipes):
            cells.setdefault(failed[cell], []).append(cell)
        listed = " ".join(f"{'; '.join(names)}: {reason}" for reason, names in cells.items())
        raise RecipeError(f"{len(failed)} of {len(recipes)} cells cannot be run, so none was started. {listed}")


def _rehearsed(recipes: Mapping[str, Recipe], on_decode: Progress | None) -> tuple[dict[str, str], str | None, str]:
    """Why cells cannot be run, and, where the process did not live to say so, the cell it was at and how it ended."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = started(_work, (dict(recipes), sender, on_decode is not None), REHEARSAL)
    sender.close()
    at = next(iter(recipes))
    try:
        while True:
            what, value = receiver.recv()
            match what:
                case "cell":
                    at = value
                case "decoded" if on_decode is not None:
                    on_decode(*value)
                case "warning":
                    warnings.warn(value[1], value[0], stacklevel=4)
                case "failing":
                    process.join(LINGERS)
                    return value, None, ""
                case "error":
                    process.join(LINGERS)
                    raise value
                case _:
                    pass
    except EOFError:
        process.join()
        return {}, at, how_it_ended(process)
    finally:
        process.kill()
        process.join()
        receiver.close()


def _work(recipes: Mapping[str, Recipe], updates: Connection, decodes: bool) -> None:
    """What the process of a rehearsal does."""
    end_with_parent()

    def tell(what: str, value: Any) -> None:
        updates.send((what, value))

    def told(message: Warning | str, category: type[Warning], *_: object) -> None:
        tell("warning", (category, str(message)))

    warnings.showwarning = told
    warnings.simplefilter("always")
    on_decode = (lambda done, count: tell("decoded", (done, count))) if decodes else None
    try:
        tell("failing", failing(recipes, on_decode, lambda cell: tell("cell", cell)))
    except SparsifyError as error:
        tell("error", error)
    except Exception as error:
        tell("error", RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


def started(target: Callable[..., None], args: tuple[Any, ...], name: str) -> BaseProcess:
    """Start a process that ignores Ctrl-C, which the terminal sends to all: it is this one's to pass on."""
    process = _context().Process(target=target, args=args, name=name)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()  # it inherits what is blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


@functools.cache
def _context() -> Any:
    """Processes are forked from one that has imported `AHEAD` and nothing of the user's; each is new where a system has no such thing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from sparsify.runs.forking import forking  # which such a system cannot import

    return forking(AHEAD)


def how_it_ended(process: BaseProcess) -> str:
    """How a process ended that should have said something first."""
    code = process.exitcode or 0
    if code >= 0:
        return f"ended with {code}"
    return f"was ended by signal {-code} (9 is what a machine without memory sends)"


def end_with_parent() -> None:
    """From now on end this process with the one that started it, even where that one is killed; what is saved is what is kept."""
    if (parent := multiprocessing.parent_process()) is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
