"""A multilayer perceptron that computes grouped layers as an exported file does, trained on digits."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from sparsify.exporters import int8_forms
from sparsify.exporters.conversion import quiet as quiet
from sparsify.exporters.conversion import translations
from sparsify.exporters.fused_products import fuse_products
from sparsify.exporters.graphs import Writer, rewritten, watched
from sparsify.exporters.grouped_linears import find_grouped_linears
from sparsify.exporters.int8_grouped import write_grouped_int8
from sparsify.exporters.int8_samples import Samples, Wanted
from sparsify.exporters.single_samples import SingleSamples
from sparsify.ir.grouped_linear import GROUPED_LINEAR
from sparsify.timing import session_of, values_of
from tests.cases import digits


class GroupedLinear(nn.Module):
    """[I, N] -> [O, N]; every ``rows`` outputs read the same ``kept`` inputs, in chunks."""

    def __init__(self, inputs: int, outputs: int, *, rows: int, kept: int, chunk: int) -> None:
        super().__init__()
        self.shape, self.chunk = (outputs // rows, rows, kept), chunk
        self.weight = nn.Parameter(torch.randn(self.shape) * kept**-0.5)
        self.bias = nn.Parameter((torch.randn(outputs, 1) * 0.3).reshape(-1))
        picked = [torch.randperm(inputs // chunk)[: kept // chunk].sort().values for _ in range(self.shape[0])]
        self.register_buffer("index", torch.stack(picked))

    def forward(self, x: Tensor) -> Tensor:
        return GROUPED_LINEAR(x, self.weight, self.index, self.bias, self.chunk)


class GroupedMlp(nn.Module):
    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.first = GroupedLinear(64, 128, rows=32, kept=16, chunk=chunk)
        self.second = GroupedLinear(128, 128, rows=32, kept=32, chunk=chunk)
        self.head = nn.Linear(128, 10)
        self.calibration = nn.Module()
        self.calibration.register_buffer("temperature", torch.tensor(1.5))  # 1 would be folded away

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = (x.flatten(1) - 0.3).t()  # centred, so that the first zero point is not 0
        logits = self.head(torch.relu(self.second(torch.relu(self.first(x)))).t())
        return logits, torch.softmax(logits / self.calibration.temperature, -1)


@functools.cache
def trained_file(chunk: int) -> bytes:
    """The file of a network trained on 1200 digits."""
    torch.manual_seed(3)
    x, y = digits(1200)
    model = GroupedMlp(chunk)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        nn.functional.cross_entropy(model(x)[0], y).backward()
        optimizer.step()
        optimizer.zero_grad()
    with quiet(), warnings.catch_warnings():
        exported = torch.onnx.export(
            model.eval(), (x[:2],), dynamo=True, opset_version=20, input_names=["x"], verbose=False,
            output_names=["logits", "probabilities"], custom_translation_table=translations(),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
    return exported.model_proto.SerializeToString()


def load(chunk: int) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(trained_file(chunk)))


def fused_products(model: ir.Model) -> ir.Model:
    return rewritten(model, fuse_products)


def single_samples(model: ir.Model) -> ir.Model:
    return rewritten(model, SingleSamples(model))


def run(model: ir.Model, x: np.ndarray, *names: str) -> list[np.ndarray]:
    return session_of(watched(model, names), threads=1).run(list(names) or None, {"x": x})


def kinds(model: ir.Model) -> list[str]:
    """The operators of a file, those of branches not among them."""
    return [node.op_type for node in model.graph]


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def images(count=1797):
    x, y = digits(count)
    return x.numpy(), y.numpy()


def grouped_int8(model, calibration, **options):
    """The file with every grouped layer in integers."""
    layers = find_grouped_linears(model.graph)
    names = sorted({name for layer in layers for name in (layer.source.name, layer.result.name)})
    return write_grouped_int8(model, None, int8_forms.observe(model, names, calibration), **options)


def in_batches(x, size=32):
    """Samples of the network, a batch an entry."""
    return [{"x": x[start : start + size]} for start in range(0, len(x), size)]


def samples(model, x, labels=None, *, batch=1, **changed):
    """Samples to calibrate on, and to compare what ``model`` gives with, or the outputs given in its place."""
    held_out = in_batches(x)
    wanted = {name: Wanted(values) for name, values in values_of(model, held_out).items()} | changed
    return Samples(held_out, {"x": x[:batch]}, held_out, wanted, labels, in_batches(x[:1]) + in_batches(x[:32]))


def with_dense_layer():
    """The file with a layer of its own between the grouped ones and the head."""
    model = load(1)
    head = next(node for node in model.graph if node.op_type == "Gemm")
    write = Writer(head, model.graph)
    weight = write.constant("eye", np.eye(128, dtype=np.float32))
    head.replace_input_with(0, write.call("MatMul", [head.inputs[0], weight], "between"))
    return model
