"""Faults between a program and its file: every one is refused, alone and beside what could hide it, on every model of `tests.cases`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from sparsify.errors import ExportError
from sparsify.exporters import export
from sparsify.exporters.proof import Reference, prove
from sparsify.ir import Program, trace
from sparsify.passes import Pipeline
from tests.cases import CASES, Case, case

SAMPLES = 100
SHIFTS = {"plain": 0.0, "-1e4": -1e4, "-1e9": -1e9, "-inf": -np.inf, "+3e4": 3e4, "outlier": 0.0, "rare": 0.0}
"""By disguise, what is added to the score of the last class."""


class Shifted(nn.Module):
    """A model with a constant added to its scores, as masked classes have; 0 until it is set."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("shift", torch.zeros(10))

    def forward(self, *args: Tensor) -> Tensor:
        made = self.model(*args)
        return (made["logits"] if isinstance(made, dict) else made) + self.shift


@functools.cache
def converted(name: str) -> tuple[Program, bytes]:
    """The program of a case whose scores can be shifted, and its file as it is exported."""
    found = case(name)
    model = Shifted(found.build())
    with torch.no_grad():
        for key, value in model.named_buffers():
            if key.endswith("running_var"):
                value.uniform_(0.2, 0.5)
    return program_and_file(trace(model, found.args, name=name), found)


def program_and_file(program: Program, found: Case, form: str = "dense") -> tuple[Program, bytes]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        export(program.eval(), path, inputs=found.args, form=form)
        return program, path.read_bytes()


def inputs_of(found: Case, disguise: str) -> list[Tensor]:
    """100 digits; with the last class in one of them only, or one sample ten thousand times as large."""
    from tests.cases import digits

    images, labels = digits(1200)
    order = torch.cat([(labels != 9).nonzero()[: SAMPLES - 1, 0], (labels == 9).nonzero()[:1, 0]])
    images = images[order if disguise == "rare" else slice(SAMPLES)].clone()
    if found.name == "embedded":
        return [(images.flatten(1) * 16).long()]
    if disguise == "outlier":
        images[3] *= 1e4
    if found.name == "two_inputs":
        flat = images.flatten(1)
        return [flat[:, :32].contiguous(), flat[:, 32:].contiguous()]
    return [images]


def weights_negated(model: onnx.ModelProto, program: Program) -> bool:
    """All of them; but one where each value goes through an even number of products, so that all would be right again."""
    most = 1 if program.name == "embedded" else 1000
    return changed(model, lambda item: len(item.dims) > 1, lambda v: -v, most=most)


def weight_permuted(model: onnx.ModelProto, program: Program) -> bool:
    return changed(model, lambda item: len(item.dims) > 1 and item.dims[-1] > 1, lambda v: v[..., ::-1], most=1)


def one_bias_off(model: onnx.ModelProto, program: Program) -> bool:
    def off(value: np.ndarray) -> np.ndarray:
        return value + 0.001 * (np.arange(value.size) == 0).astype(value.dtype)

    return changed(model, lambda item: item.name.endswith("bias") and list(item.dims) == [10], off)


def norm_dropped(model: onnx.ModelProto, program: Program) -> bool:
    """Weights and bias of a convolution as they were before its batch norm was folded."""
    norm = next((name for name, _ in program.named_buffers() if name.endswith("running_var")), None)
    if norm is None:
        return False
    scale = program.get_buffer(norm).rsqrt().numpy()
    done = changed(
        model,
        lambda item: len(item.dims) == 4 and item.dims[0] == len(scale),
        lambda v: v / scale.reshape(-1, 1, 1, 1),
        most=1,
    )
    return done


def dropout_left_on(model: onnx.ModelProto, program: Program) -> bool:
    """A dropout before the last product that is in training mode."""
    if not any("Dropout" in type(module).__name__ for module in case(program.name).build().modules()):
        return False
    last = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")][-1]
    place = list(model.graph.node).index(last)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "ratio"))
    nodes = [
        helper.make_node("RandomUniformLike", [last.input[0]], ["drawn"], seed=1.0),
        helper.make_node("Less", ["ratio", "drawn"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["factor"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [last.input[0], "factor"], ["dropped"]),
    ]
    last.input[0] = "dropped"
    for node in reversed(nodes):
        model.graph.node.insert(place, node)
    return True


FAULTS = (weights_negated, weight_permuted, one_bias_off, norm_dropped, dropout_left_on)


def changed(
    model: onnx.ModelProto, chosen: Callable[[onnx.TensorProto], object], change: Callable, most: int = 1000
) -> bool:
    """Change float initializers; whether there was one."""
    count = 0
    for item in model.graph.initializer:
        if item.data_type == onnx.TensorProto.FLOAT and chosen(item) and count < most:
            values = numpy_helper.to_array(item)
            item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(values)), item.name))
            count += 1
    return count > 0


def shifted(data: bytes, value: float) -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(data)
    found = changed(
        model,
        lambda item: item.name.endswith("shift"),
        lambda v: np.where(np.arange(10) == 9, value, 0).astype(np.float32),
    )
    assert found
    return model


@pytest.mark.parametrize("found", CASES, ids=lambda found: found.name)
def test_every_fault_is_refused_beside_everything_that_could_hide_it(found, record_property):
    program, data = converted(found.name)
    combinations = 0
    for disguise, value in SHIFTS.items():
        program.get_buffer("shift")[9] = value
        reference = Reference(program, inputs_of(found, disguise))
        parity = prove(shifted(data, value).SerializeToString(), reference)
        assert parity.batches == (1, SAMPLES) and parity.samples == SAMPLES and parity.units >= 9, (disguise, parity)
        assert parity.share < 0.5, (disguise, parity)
        for fault in FAULTS:
            model = shifted(data, value)
            if not fault(model, program):
                continue
            with pytest.raises(ExportError, match="differs from the program"):
                pytest.fail(f"{fault.__name__} beside {disguise}: {prove(model.SerializeToString(), reference)}")
            combinations += 1
    program.get_buffer("shift")[9] = 0.0
    record_property("combinations", combinations)
    assert combinations >= 3 * len(SHIFTS)


@pytest.mark.parametrize("name", ["mlp", "residual", "dropouts", "wide"])
def test_wrong_indices_of_one_group_are_refused(name):
    found = case(name)
    program = Pipeline.parse("insert-masks{density=0.05}")(found.trace().eval())
    program, data = program_and_file(program, found, form="grouped")
    reference = Reference(program, inputs_of(found, "plain"))
    assert prove(data, reference).units >= 6
    model = onnx.ModelProto.FromString(data)
    read = {node.input[1] for node in model.graph.node if node.op_type == "Gather"}
    table = next(item for item in model.graph.initializer if item.name in read and np.prod(item.dims) >= 16)
    values = numpy_helper.to_array(table)
    table.CopyFrom(numpy_helper.from_array(np.roll(values, 1, axis=-1), table.name))
    with pytest.raises(ExportError, match="differs from the program"):
        prove(model.SerializeToString(), reference)
