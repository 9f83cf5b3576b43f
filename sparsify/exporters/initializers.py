"""The weights of an exported file: their names, their zeros, how they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from torch import Tensor

from sparsify.errors import ExportError
from sparsify.ir import Program
from sparsify.ir.weight_reads import multiplied_values


def name_weights(model: ir.Model, program: Program) -> ir.Model:
    """Give weights that the converter has transposed and renamed their names back, in place."""
    known = {name: p.detach().numpy() for name, p in program.named_parameters() if p.ndim == 2}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if (
            tensor is None
            or value.is_graph_output()
            or str(value.name).startswith("phase.")
            or tensor.dtype != ir.DataType.FLOAT
            or len(tensor.shape) != 2
        ):
            continue
        values = tensor.numpy()
        name = next(
            (n for n, w in known.items() if w.shape == values.shape[::-1] and np.array_equal(w.T, values)), None
        )
        if name is not None:
            del known[name]
            value.name = f"phase.{name}"
    return model


def check_budgets(model: ir.Model, folded: Program, program: Program, masks: Mapping[str, Tensor]) -> tuple[int, int]:
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


def _arrays(model: ir.Model) -> Iterator[np.ndarray[Any, Any]]:
    """The initializers; the matrices of a recurrent layer, which hold one for each direction, one by one."""
    recurrent = {value for node in model.graph if node.op_type in ("LSTM", "GRU", "RNN") for value in node.inputs[1:3]}
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        yield from (array if value in recurrent else [array])


def _kept_name(program: Program, name: str) -> str:
    names = dict(program.named_parameters(remove_duplicate=False))
    if name in names:
        return name
    raise ExportError(f"the weight {name!r} vanished while folding; it is not read by the eval phase.")


def as_sparse(tensor: ir.TensorProtocol) -> onnx.SparseTensorProto | None:
    """A sparse initializer, values and one int64 index for each non-zero; None if that is not smaller."""
    if tensor.dtype != ir.DataType.FLOAT:
        return None
    array = tensor.numpy()
    index = np.flatnonzero(array)
    if len(index) * 12 >= array.nbytes:
        return None
    values = ir.tensor(array.reshape(-1)[index], name=tensor.name)
    places = ir.tensor(index.astype(np.int64), name=f"{tensor.name}_index")
    return helper.make_sparse_tensor(ir.to_proto(values), ir.to_proto(places), list(array.shape))
