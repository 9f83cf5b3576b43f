"""The weights of an exported file: their names, their zeros, how they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from sparsify.errors import ExportError
from sparsify.ir import Program
from sparsify.ir.weight_reads import multiplied_values


def name_weights(model: onnx.ModelProto, program: Program) -> onnx.ModelProto:
    """Give weights that the converter has transposed and renamed their names back."""
    known = {name: p.detach().numpy() for name, p in program.named_parameters() if p.ndim == 2}
    for item in model.graph.initializer:
        if item.name.startswith("phase.") or len(item.dims) != 2 or item.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(item)
        name = next(
            (n for n, w in known.items() if w.shape == values.shape[::-1] and np.array_equal(w.T, values)), None
        )
        if name is None:
            continue
        del known[name]
        for node in model.graph.node:
            for place, given in enumerate(node.input):
                if given == item.name:
                    node.input[place] = f"phase.{name}"
        for value in model.graph.value_info:
            if value.name == item.name:
                value.name = f"phase.{name}"
        item.name = f"phase.{name}"
    return model


def check_budgets(
    model: onnx.ModelProto, folded: Program, program: Program, masks: Mapping[str, Tensor]
) -> tuple[int, int]:
    """Zeros of every masked weight that the eval phase reads, by size and count.

    The exporter may rename and transpose, and write what the program computes from a parameter in the place of the parameter.

    Returns:
        The non-zeros before outputs without a reader were dropped, and the positions.

    Raises:
        ExportError: If an initializer is missing.
    """
    found = [(array.size, int(np.count_nonzero(array))) for array in _arrays(model)]
    nonzeros = positions = 0
    read = read_parameters(program)
    for name, mask in masks.items():
        if name not in read:
            nonzeros, positions = nonzeros + int(mask.count_nonzero()), positions + mask.numel()
            continue
        key = _zeros(program.get_parameter(_kept_name(program, name)))
        if key in found:
            found.remove(key)
        elif not (made := [*map(_zeros, multiplied_values(program, "eval", name))]) or not set(made) <= set(found):
            raise ExportError(
                f"no initializer of the ONNX file has the {key[1]} non-zeros of {key[0]} positions of {name!r}; "
                f"the exporter changed the weight. Please report this model."
            )
        whole = int(folded.get_parameter(_kept_name(folded, name)).count_nonzero())
        nonzeros, positions = nonzeros + whole, positions + mask.numel()
    return nonzeros, positions


def read_parameters(program: Program) -> set[str]:
    """Names of the parameters whose tensor the eval phase reads, under any of their names; the others are not in a file."""
    tensors = dict(program.named_parameters(remove_duplicate=False))
    nodes = program.phases["eval"].graph.nodes
    read = {id(tensors[n.target]) for n in nodes if n.op == "get_attr" and n.users and n.target in tensors}
    return {name for name, tensor in tensors.items() if id(tensor) in read}


def _zeros(weight: Tensor) -> tuple[int, int]:
    """Positions, and how many of them are not 0."""
    return weight.numel(), int(weight.detach().count_nonzero())


def _arrays(model: onnx.ModelProto) -> Iterator[np.ndarray[Any, Any]]:
    """The initializers; the matrices of a recurrent layer, which hold one for each direction, one by one."""
    recurrent = {
        name for node in model.graph.node if node.op_type in ("LSTM", "GRU", "RNN") for name in node.input[1:3]
    }
    for initializer in model.graph.initializer:
        array = numpy_helper.to_array(initializer)
        yield from (array if initializer.name in recurrent else [array])


def _kept_name(program: Program, name: str) -> str:
    names = dict(program.named_parameters(remove_duplicate=False))
    if name in names:
        return name
    raise ExportError(f"the weight {name!r} vanished while folding; it is not read by the eval phase.")


def store_sparse(model: onnx.ModelProto) -> None:
    """Move initializers into sparse ones where that is smaller (values and one int64 index a non-zero)."""
    kept: list[onnx.TensorProto] = []
    for initializer in model.graph.initializer:
        array = numpy_helper.to_array(initializer)
        index = np.flatnonzero(array)
        if array.dtype != np.float32 or len(index) * 12 >= array.nbytes:
            kept.append(initializer)
            continue
        values = helper.make_tensor(
            initializer.name, TensorProto.FLOAT, [len(index)], array.reshape(-1)[index].tobytes(), raw=True
        )
        places = helper.make_tensor(
            f"{initializer.name}_index", TensorProto.INT64, [len(index)], index.astype(np.int64).tobytes(), raw=True
        )
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, list(array.shape)))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
