"""Small ONNX files for digits, written with onnx alone: a linear classifier with every output that can be measured, and a regression."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

from sparsify.reading.digits import digits_arrays

PREPARED = {
    "mean": "[0.3]",
    "std": "[0.5]",
    "scale": "255.0",
    "preprocessing": "(x / scale - mean) / std, by the caller",
}
TYPES = {"prediction_set": TensorProto.BOOL, "accept": TensorProto.BOOL}


@functools.cache
def fitted(seed: int = 0, samples: int = 1437) -> tuple[np.ndarray, np.ndarray]:
    """Weight [64, 10] and bias [10] of a linear classifier of prepared digits."""
    data = digits_arrays()
    rows = np.random.default_rng(seed).permutation(len(data["x_train"]))[:samples]
    model = LogisticRegression(C=0.05, max_iter=2000).fit(
        prepared(data["x_train"][rows]).reshape(-1, 64), data["y_train"][rows]
    )
    return model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)


def prepared(pixels: np.ndarray) -> np.ndarray:
    """Inputs of the files, as `PREPARED` says."""
    return ((pixels.astype(np.float32) / np.float32(255) - np.float32(0.3)) / np.float32(0.5)).reshape(
        len(pixels), 1, 8, 8
    )


def classifier(
    path: Path,
    *,
    outputs: Sequence[str] = ("logits", "probabilities"),
    renamed: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    shape: Sequence[int | str] = ("N", 1, 8, 8),
    temperature: float = 1.5,
    set_above: float = 0.05,
    accept_above: float = 0.6,
    weight: tuple[np.ndarray, np.ndarray] | None = None,
) -> Path:
    """Write a linear classifier of digits with some of the outputs of `sparsify.evaluation.model_file.ROLES`."""
    matrix, bias = weight or fitted()
    names = {name: name for name in outputs} | dict(renamed or {})
    node = helper.make_node
    nodes = [node("Flatten", ["x"], ["flat"], axis=1)]
    if list(shape)[1:] == [8, 8, 1] or len(shape) == 3:
        nodes = [node("Reshape", ["x", "rows"], ["flat"])]
    nodes += [
        node("Gemm", ["flat", "matrix", "bias"], ["z"]),
        node("Div", ["z", "temperature"], ["tempered"]),
        node("Softmax", ["tempered"], ["p"], axis=1),
        node("ReduceMax", ["p", "last"], ["top"], keepdims=0),
        node("Greater", ["p", "set_above"], ["set"]),
        node("Greater", ["top", "accept_above"], ["taken"]),
        node("ReduceLogSumExp", ["z", "last"], ["lse"], keepdims=0),
        node("Neg", ["lse"], ["uncertain"]),
    ]
    made = {
        "logits": "z",
        "probabilities": "p",
        "prediction_set": "set",
        "accept": "taken",
        "ood_score": "lse",
        "uncertainty": "uncertain",
    }
    nodes += [node("Identity", [made[role]], [names[role]]) for role in outputs]
    sizes: dict[str, list[int | str]] = {
        "logits": ["N", 10], "probabilities": ["N", 10], "prediction_set": ["N", 10], "accept": ["N"], "ood_score": ["N"],
        "uncertainty": ["N"],
    }  # fmt: skip
    batch = shape[0]
    values = [
        helper.make_tensor_value_info(names[role], TYPES.get(role, TensorProto.FLOAT), [batch, *sizes[role][1:]])
        for role in outputs
    ]
    constants = {
        "matrix": matrix, "bias": bias, "temperature": np.float32(temperature), "set_above": np.float32(set_above),
        "accept_above": np.float32(accept_above), "last": np.array([1], np.int64), "rows": np.array([-1, 64], np.int64),
    }  # fmt: skip
    return written(path, nodes, shape, values, constants, PREPARED if metadata is None else metadata)


def regression(path: Path, weight: np.ndarray, *, reach: float = 1.0) -> Path:
    """Write a linear regression of features [N, F] with intervals; ``weight`` [F + 1], the last is the bias."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["scaled"]),
        node("Add", ["scaled", "b"], ["prediction"]),
        node("Sub", ["prediction", "reach"], ["lower"]),
        node("Add", ["prediction", "reach"], ["upper"]),
    ]
    constants = {
        "w": weight[:-1, None].astype(np.float32), "b": weight[-1:].astype(np.float32), "reach": np.float32(reach),
    }  # fmt: skip
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("prediction", "lower", "upper")
    ]
    return written(path, nodes, ("N", len(weight) - 1), values, constants, {"task": "regression"})


def written(path, nodes, shape, values, constants, metadata) -> Path:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [given], values, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.save(model, path)
    return path
