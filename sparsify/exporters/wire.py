"""The bytes of a file, weight by weight: the whole is never in memory beside the graph it is made from."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from sparsify.errors import ExportError
from sparsify.exporters.initializers import as_sparse
from sparsify.exporters.skeleton import framed

LIMIT = 2**31
"""Bytes that a file in one part has to stay below."""
_GRAPH, _WEIGHT = b"\x3a", b"\x2a"
"""Before a `ModelProto.graph` and a `GraphProto.initializer`: the field, then its length and its bytes."""
_BEFORE, _AFTER = range(5), range(6, 100)
"""Fields of a `GraphProto` in the order of their numbers: those before its initializers, and those after them."""


def pieces(model: ir.Model, *, sparse: bool = False) -> Iterator[bytes]:
    """What ``ir.to_proto(model).SerializeToString(deterministic=True)`` gives, in pieces; that needs memory for two copies more.

    Args:
        model: the file.
        sparse: whether weights are stored as sparse initializers where that is smaller.

    Raises:
        ExportError: If the file has 2 GiB or more.
    """
    frame, weights = framed(model), list[ir.TensorProtocol]()
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            continue
        value.const_value.name = name
        packed = as_sparse(value.const_value) if sparse else None
        if packed is None:
            weights.append(value.const_value)
        else:
            frame.graph.sparse_initializer.append(packed)
    size = sum(map(len, _graph(frame.graph, weights)))
    if size >= LIMIT:
        raise ExportError(f"the file would have {size} bytes; ONNX files in one part have fewer than {LIMIT}.")
    for field, _ in frame.ListFields():
        if field.name == "graph":
            yield _GRAPH + _varint(size)
            yield from _graph(frame.graph, weights)
        else:
            yield from _fields(frame, {field.number})


def _graph(frame: onnx.GraphProto, weights: Sequence[ir.TensorProtocol]) -> Iterator[bytes]:
    yield from _fields(frame, _BEFORE)
    for weight in weights:
        data = ir.to_proto(weight).SerializeToString(deterministic=True)
        yield _WEIGHT + _varint(len(data))
        yield data
    yield from _fields(frame, _AFTER)


def _fields(message: Message, numbers: Container[int]) -> Iterator[bytes]:
    """Some fields of a message in the order of their numbers, each element of a repeated field on its own."""
    for field, value in message.ListFields():
        if field.number not in numbers:
            continue
        elements: Iterable[object] = (
            value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)
        )
        repeated = elements is value
        for element in elements:
            part = type(message)(**{field.name: [element] if repeated else element})
            yield part.SerializeToString(deterministic=True)


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes((*made, number))
