"""Ways to spoil a file: its bytes, its structure, and every text, number and name in it replaced by an attack."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from typing import Any

CANARY = "canary"
"""A file that no reader may make, in the working folder."""
CODE = f"open('{CANARY}','w')"


def _structure(kind: str, context: str) -> str:
    return json.dumps([1, {"type": kind, "context": context, "children_spec": []}])


TEXTS = (
    CODE,
    f"x={CODE}",
    f"x={CODE};y",
    f'")or {CODE}#',
    f"') or {CODE} #",
    f"\n    {CODE}\n    #",
    f"a={CODE}, b",
    f"__import__('os').system('touch {CANARY}')",
    f"{{{CODE}}}",
    f"${{{CODE}}}",
    "__class__.__init__.__globals__",
    "forward.__globals__",
    "self",
    "torch",
    "x" * 100_000,
    "",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "../../" + CANARY,
    "/dev/zero",
    "op:aten.from_file.default",
    "op:aten.set_.source_Storage",
    "op:aten.save.default",
    "op:aten.resize_.default",
    "op:aten.zeros.default",
    "op:prims.add.default",
    "py:builtins.exec",
    "py:os.system",
    "py:operator.pow",
    "py:operator.attrgetter",
    "op:aten.relu.__class__",
    "op:aten._unsafe_index.Tensor",
    "call_method",
    "call_module",
    "call_function",
    "get_attr",
    "torch.ops.aten.from_file.default",
    "torch.hub.load",
    "_operator.methodcaller",
    "os.system",
    "builtins.exec",
    "9**9**9**9",
    _structure("builtins.dict", '[{"__enum__": true, "fqn": "antigravity:x", "name": "x"}]'),
    _structure("collections.defaultdict", '{"default_factory_module": "antigravity"}'),
    "nm:2:4",
    "block:4x4",
    "masked",
    "float8",
    "load",
    "cuda:0",
    "meta",
    "N",
    "2*N",
    "s0",
    "NaN",
    "rigl(" * 200,
    "[/x]",
    "mine.py:build",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    2**31,
    2**40,
    2**62,
    2**63,
    -(2**63),
    10**30,
    10**400,
    0.5,
    1e308,
    -1e-308,
    float("nan"),
    float("inf"),
    True,
    False,
)


def attack(draw: random.Random) -> Any:
    """Something in place of any value."""
    kind = draw.randrange(8)
    if kind < 4:
        return draw.choice(TEXTS)
    if kind < 6:
        return draw.choice(NUMBERS)
    return draw.choice(
        [
            None,
            [],
            {},
            [[]],
            {"node": "x"},
            {"list": [2**40, 2**40]},
            {"float": "1e999"},
            {"device": "/dev/zero"},
            {"dtype": "load"},
            {"tuple": []},
            nested(draw.choice([50, 150, 250])),
        ]
    )


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON document."""
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        inner = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
        found += [(one, key) for key, _ in inner]
        waiting += [item for _, item in inner]
    return found


def structure(document: Any, draw: random.Random) -> Any:
    """A copy of a JSON document with one to three places replaced, left out, doubled, renamed or swapped."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        here = places(document)
        if not here:
            return attack(draw)
        owner, key = draw.choice(here)
        match draw.randrange(8):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, list):
                owner.insert(key, copy.deepcopy(owner[key]))
            case 1:
                owner[draw.choice(TEXTS)] = owner.pop(key)
            case 2:
                other, place = draw.choice(here)
                try:
                    owner[key] = copy.deepcopy(other[place])
                except (KeyError, IndexError):
                    owner[key] = None
            case _:
                owner[key] = attack(draw)
    return document


def dumped(document: Any) -> str:
    """JSON, numbers of any size included."""
    try:
        return json.dumps(document)
    except (ValueError, RecursionError):
        return "[" * 5000


def spoiled(content: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, or overwritten."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5, 30])):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(7):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + draw.randrange(1, 64)]
            case 2:
                data[at:at] = data[: draw.randrange(64)]
            case 3:
                data[at : at + 8] = draw.choice([b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, draw.randbytes(8)])
            case 4:
                data[at:at] = draw.choice(
                    [CODE.encode(), b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b"\n", b"\xff\xfe"]
                )
            case _ if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            case _:
                data += draw.randbytes(8)
        if not data:
            break
    return bytes(data)


def parts(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def zipped(content: dict[str, bytes], draw: random.Random | None = None) -> bytes:
    """An archive of parts; with ``draw``, sometimes compressed, with a part too many or too few."""
    buffer, method = io.BytesIO(), zipfile.ZIP_STORED
    content = dict(content)
    if draw and draw.random() < 0.1:
        method = zipfile.ZIP_DEFLATED
    if draw and draw.random() < 0.1:
        content[draw.choice(["../" + CANARY, "/" + CANARY, "x.py", "data.pkl", "state.safetensors "])] = CODE.encode()
    if draw and draw.random() < 0.05:
        content.pop(draw.choice(list(content)))
    if draw and draw.random() < 0.05:
        content[draw.choice(list(content))] = bytes(1 << 22)
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()
