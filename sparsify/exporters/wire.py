"""The bytes of a file, weight by weight: the whole is never in memory beside the graph it is made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from google.protobuf.message import Message

from sparsify.errors import ExportError

LIMIT = 2**31
"""Bytes that a file in one part has to stay below."""
_GRAPH = b"\x3a"
"""Before a `ModelProto.graph`: field 7, its length and its bytes."""


def pieces(model: onnx.ModelProto) -> Iterator[bytes]:
    """What ``model.SerializeToString(deterministic=True)`` gives, in pieces; that needs memory for two copies more.

    Raises:
        ExportError: If the file has 2 GiB or more.
    """
    size = sum(map(len, _fields(model.graph)))
    if size >= LIMIT:
        raise ExportError(f"the file would have {size} bytes; ONNX files in one part have fewer than {LIMIT}.")
    for field, _ in model.ListFields():
        if field.name == "graph":
            yield _GRAPH + _varint(size)
            yield from _fields(model.graph)
        else:
            yield from _fields(model, only=field.name)


def _fields(message: Message, *, only: str | None = None) -> Iterator[bytes]:
    """A message field by field in the order of their numbers, each element of a repeated field on its own."""
    for field, value in message.ListFields():
        if only is not None and field.name != only:
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
