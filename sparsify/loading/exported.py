"""Reads the model of a ``.pt2`` archive of torch.export without running anything from the archive."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import fx, nn

from sparsify.errors import LoadError
from sparsify.ir import TensorSpec, TraceWarning
from sparsify.ir.capture import quiet
from sparsify.ir.rehearsal import rehearse_graph
from sparsify.ir.traits import argument, kind_of, traits
from sparsify.loading.archives import sanitised

MODES = {"batch_norm": ("training", "batch norm"), "dropout": ("train", "dropout")}
"""Operators that behave differently in training, by name or kind: the argument for training mode, and their name in messages."""


def load_exported(path: Path) -> nn.Module:
    """Return the model of a ``.pt2`` archive, with its parameter names and module tree.

    An exported program has a fixed mode. If it was exported after ``model.eval()``, batch norm keeps its statistics and dropout does
    nothing, in training too; a `TraceWarning` says so. If it was exported in training mode and contains batch norm or dropout, it is
    refused, because these would behave as in training when the model is evaluated and deployed.

    Raises:
        LoadError: If the file is missing or damaged, contains anything that could run code, or was exported in training mode or for a
            single batch size.
    """
    safe = sanitised(path)
    try:
        with warnings.catch_warnings(), quiet("torch.export", "torch._export"):
            warnings.simplefilter("ignore")  # warnings of torch about its own code
            program = torch.export.load(io.BytesIO(safe))
            model = torch.export.unflatten(program)
    except Exception as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise LoadError(
            f"{path} is not an exported program that this torch ({torch.__version__}) can read: {text}. Save it again with "
            f"torch.export.save, or load the model with file.py:factory."
        ) from error
    sizes = [
        node.meta["val"].shape[:1] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    ]
    if not any(isinstance(size, torch.SymInt) for first in sizes for size in first):
        raise LoadError(
            f"{path} was exported with a fixed batch size ({', '.join(str(size) for first in sizes for size in first)}). Export it again "
            f"with dynamic_shapes, e.g. ({{0: torch.export.Dim('batch')}},)."
        )
    _rehearse(path, program)
    training, resting = _modes(program.graph)
    if training:
        raise LoadError(
            f"{path} was exported in training mode: its {' and '.join(sorted(training))} would still be in training mode when the "
            f"model is evaluated and deployed. Export it again after model.eval(), or give the model as file.py:factory."
        )
    if resting:
        warnings.warn(
            f"{path} was exported in eval mode: its {' and '.join(sorted(resting))} will stay in eval mode during training. Give the model "
            f"as file.py:factory with --weights to train it as it was built.",
            TraceWarning,
            stacklevel=2,
        )
    return model


def _rehearse(path: Path, program: torch.export.ExportedProgram) -> None:
    signature, state = program.graph_signature, {**program.state_dict, **program.constants}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }

    def given(node: fx.Node) -> TensorSpec | torch.Tensor | None:
        value = state[names[node.name]] if node.name in names else node.meta["val"]
        if not isinstance(value, torch.Tensor) or node.name in names:
            return value if isinstance(value, torch.Tensor) else None
        sizes = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        first = next((size for size in sizes if isinstance(size, str)), "")
        return TensorSpec(
            node.name, tuple("N" if size == first else size for size in sizes), str(value.dtype).removeprefix("torch.")
        )

    try:
        rehearse_graph(program.graph, "of the archive", given, lambda name: state[name])
    except LoadError as error:
        raise LoadError(f"{path} is refused: {error} Save it again with torch.export.save.") from error


def _modes(graph: fx.Graph) -> tuple[set[str], set[str]]:
    """Return the kinds of operators in a graph that behave as in training, and those that behave as in evaluation."""
    found: tuple[set[str], set[str]] = (set(), set())
    for node in graph.nodes:
        name, title = MODES.get(traits(node).name, MODES.get(kind_of(node), ("", "")))
        if title:
            found[0 if argument(node, name) else 1].add(title)
    return found
