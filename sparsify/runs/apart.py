"""Rehearses a grid in a separate process: if a model kills that process, it is refused like any other bad model."""

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
"""Seconds that a process may take to end after its answer. Killing it would leak semaphores and cause a warning of Python."""
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
    """Return why cells cannot be run; if the process died, also the cell it was working on and how it ended."""
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
    """Run the rehearsal in its process."""
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
    """Start a process that ignores Ctrl-C. The terminal sends Ctrl-C to all processes, but only this one handles it."""
    process = _context().Process(target=target, args=args, name=name)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()  # it inherits what is blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


@functools.cache
def _context() -> Any:
    """Return a context that forks processes from one that has imported `AHEAD` but no user code; without fork, it starts new ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from sparsify.runs.forking import forking  # which such a system cannot import

    return forking(AHEAD)


def how_it_ended(process: BaseProcess) -> str:
    """Describe how a process ended that should have answered first."""
    code = process.exitcode or 0
    if code >= 0:
        return f"ended with {code}"
    return f"was ended by signal {-code} (9 is what a machine without memory sends)"


def end_with_parent() -> None:
    """From now on, end this process when its parent ends, even if the parent is killed; only what was saved is kept."""
    if (parent := multiprocessing.parent_process()) is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
