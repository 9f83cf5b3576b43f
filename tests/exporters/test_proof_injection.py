"""Faults between a program and its file: every one is refused, alone and beside what could hide it, on every model of `tests.cases`."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
from tests.cases import CASES, Case, case, digits

SAMPLES = 100
SHIFTS = {"plain": 0.0, "-1e4": -1e4, "-1e9": -1e9, "-inf": -np.inf, "+3e4": 3e4, "outlier": 0.0, "rare": 0.0}
"""By disguise, what is added to the score of the last class."""


@functools.cache
def converted(name: str) -> tuple[Program, bytes]:
    """The program of a case with statistics of its own, and its file as it is exported."""
    program = case(name).trace().eval()
    with torch.no_grad():
        for key, value in program.named_buffers():
            if key.endswith("running_var"):
                value.uniform_(0.2, 0.5)
    return program, file_of(program, case(name).args)


def file_of(program: Program, args: Sequence[Tensor], **options: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return export(program, Path(folder) / "m.onnx", inputs=args, **{"form": "dense", **options}).path.read_bytes()


def inputs_of(found: Case, disguise: str) -> list[Tensor]:
    """100 digits; with the last class in one of them only, or one sample ten thousand times as large."""
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
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, dtype=np.float32), "ratio"))
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
    """The file with a constant added to the score of the last class."""
    model = onnx.ModelProto.FromString(data)
    shift = np.where(np.arange(10) == 9, value, 0).astype(np.float32)
    assert changed(model, lambda item: item.name.endswith("bias") and list(item.dims) == [10], lambda v: v + shift)
    return model


COMBINATIONS = {
    "mlp": 21, "conv_bn": 35, "residual": 28, "grouped": 21, "tied": 21, "shared": 21, "dict_output": 21, "two_inputs": 21,
    "depthwise": 28, "dropouts": 28, "attention": 28, "embedded": 21, "wide": 21,
}  # fmt: skip
"""Faults times disguises by model; 315 in all, as docs/reports.md says."""


@pytest.mark.parametrize("found", CASES, ids=lambda found: found.name)
def test_every_fault_is_refused_beside_everything_that_could_hide_it(found):
    program, data = converted(found.name)
    bias = next(value for value in reversed(list(program.parameters())) if value.shape == (10,))
    plain, combinations = bias.detach().clone(), 0
    for disguise, value in SHIFTS.items():
        with torch.no_grad():
            bias[9] = plain[9] + value
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
    with torch.no_grad():
        bias.copy_(plain)
    assert combinations == COMBINATIONS[found.name]


def test_the_number_of_combinations_that_the_docs_name_is_that_of_the_test():
    text = (Path(__file__).parents[2] / "docs" / "reports.md").read_text()
    assert set(COMBINATIONS) == {found.name for found in CASES}
    assert f"{sum(COMBINATIONS.values())} combinations" in " ".join(text.split())


class Tokens(nn.Module):
    """The rows of an image as tokens through wide linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 128), nn.Linear(128, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1))
        return self.head((x + self.down(torch.relu(self.up(x)))).mean(1))


def linear() -> nn.Module:
    """Wide enough for selections of its own for one sample."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def convolutions() -> nn.Module:
    """Convolutions of width 3 and 1, the last one strided, that are written in groups."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


SELECTED = {
    "linear": (linear, "grouped:8"),
    "tokens": (Tokens, "grouped:16"),
    "convolutions": (convolutions, "grouped:32"),
}
"""By name, a network whose layers select the inputs of groups in its file, and their pattern."""


@functools.cache
def masked(name: str = "linear") -> Program:
    """A network with groups, of density 0.25."""
    torch.manual_seed(0)
    model, pattern = SELECTED[name]
    program = trace(model().eval(), (digits(2)[0],)).eval()
    return Pipeline.parse(f"insert-masks{{density=0.25 pattern={pattern} allocation=uniform}}")(program).eval()


@pytest.mark.parametrize("branch", ["then_branch", "else_branch"])
def test_a_fault_at_one_sample_only_or_at_several_only_is_refused(branch):
    """What one branch selects is negated."""
    data, reference = grouped_file()
    model = onnx.ModelProto.FromString(data)
    graph = next(a.g for node in model.graph.node if node.op_type == "If" for a in node.attribute if a.name == branch)
    name = graph.output[0].name
    next(node for node in graph.node if name in node.output).output[0] = "right"
    graph.node.append(helper.make_node("Neg", ["right"], [name]))
    batch = 1 if branch == "then_branch" else SAMPLES
    with pytest.raises(ExportError, match=f"differs from the program at batch {batch}:"):
        prove(model.SerializeToString(), reference)


@functools.cache
def grouped_file(name: str = "linear") -> tuple[bytes, Reference]:
    inputs = inputs_of(case("mlp"), "plain")
    data, reference = file_of(masked(name), inputs, form="grouped"), Reference(masked(name), inputs)
    assert prove(data, reference).units == 10
    return data, reference


def one_other(index: np.ndarray, first: np.ndarray) -> None:
    """One index of a group is an input that the group does not read."""
    others = sorted(set(index.flat) - set(index[0]))
    index[0, first[0, 0]] = others[0] if others else index[0, first[0, 1]]


def one_other_in_the_last(index: np.ndarray, first: np.ndarray) -> None:
    one_other(index[::-1], first[::-1])


def places_exchanged(index: np.ndarray, first: np.ndarray) -> None:
    """A group reads what it should, two inputs in each other's place."""
    index[0, first[0, :2]] = index[0, first[0, 1::-1]]


def groups_exchanged(index: np.ndarray, first: np.ndarray) -> None:
    """The first group reads what the last one should, and the other way round."""
    index[[0, -1]] = index[[-1, 0]]


WRONG_INDICES = (one_other, one_other_in_the_last, places_exchanged, groups_exchanged)
"""Each changes indices [groups, k] in place. They are given the places of a group by weight, largest first: a place may be filled up."""


def selections(model: onnx.ModelProto) -> dict[str, tuple[onnx.TensorProto, np.ndarray]]:
    """By name, the index table of a selection and the places of each group by weight, from the convolution that reads what is selected."""
    nodes, tables = list(nodes_of(model.graph)), {table.name: table for table in model.graph.initializer}
    merged = {a.g.output[0].name: node.output[0] for node in nodes for a in node.attribute if a.HasField("g")}
    readers = {node.input[0]: node for node in nodes if node.op_type in ("Conv", "Reshape")}
    found = dict[str, tuple[onnx.TensorProto, np.ndarray]]()
    for node in nodes:
        if node.op_type == "Gather":
            reader = node
            while reader.op_type != "Conv":
                reader = readers[merged.get(reader.output[0], reader.output[0])]
            groups = next(a.i for a in reader.attribute if a.name == "group")
            weight = np.abs(numpy_helper.to_array(tables[reader.input[1]]))
            size = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).sum((1, 3))
            found[node.input[1]] = tables[node.input[1]], np.argsort(-size, axis=1, kind="stable")
    return found


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of branches too."""
    for node in graph.node:
        yield node
        for branch in (a.g for a in node.attribute if a.HasField("g")):
            yield from nodes_of(branch)


@pytest.mark.parametrize("name", SELECTED)
def test_wrong_indices_of_a_group_are_refused(name):
    data, reference = grouped_file(name)
    model = onnx.ModelProto.FromString(data)
    found = selections(model)
    assert len(found) >= 2 and any(len(first) > 1 for _, first in found.values())
    for table, first in found.values():
        values, kept = numpy_helper.to_array(table), table.SerializeToString()
        for fault in WRONG_INDICES if len(first) > 1 else WRONG_INDICES[:-1]:
            wrong = values.copy()
            fault(wrong.reshape(first.shape), first)
            assert not np.array_equal(wrong, values), (table.name, fault.__name__)
            table.CopyFrom(numpy_helper.from_array(wrong, table.name))
            with pytest.raises(ExportError, match="differs from the program"):
                pytest.fail(f"{fault.__name__} of {table.name}: {prove(model.SerializeToString(), reference)}")
            table.ParseFromString(kept)


def test_one_value_of_a_sparse_initializer_in_another_place_is_refused():
    inputs = inputs_of(case("mlp"), "plain")
    model = onnx.ModelProto.FromString(file_of(masked(), inputs, storage="sparse"))
    assert model.graph.sparse_initializer
    for item in model.graph.sparse_initializer:
        places = numpy_helper.to_array(item.indices).copy()
        size = np.abs(numpy_helper.to_array(item.values))
        movable = [k for k in range(len(places) - 1) if places[k] + 1 < places[k + 1]]
        kept, moved = item.indices.SerializeToString(), max(movable, key=lambda k: size[k])
        places[moved] += 1
        item.indices.CopyFrom(numpy_helper.from_array(places, item.indices.name))
        with pytest.raises(ExportError, match="differs from the program"):
            prove(model.SerializeToString(), grouped_file()[1])
        item.indices.ParseFromString(kept)
