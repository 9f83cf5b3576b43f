"""The lines of Python that run a file on a picture or an array, prepared as the training data were: numpy, pillow and onnxruntime only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Modes of pillow by the number of channels; with four, transparency is one of them."""
PROBABILITIES = "probabilities"
ARRANGED = {"NHW": "[:, None]", "NHWC": ".transpose(0, 3, 1, 2)"}
"""How stored arrays become [N, C, H, W]; others are so already."""


def usage(report: Report) -> dict[str, str]:
    """The lines for each kind of input that the file's data allow, by what they read; empty for a report without ``input``.

    They print ``probabilities`` where the file has them, else all of its ``outputs`` by name.

    Args:
        report: content of ``metrics.json``.
    """
    given, outputs = report.get("input"), report.get("outputs")
    if not given:
        return {}
    name, found = report["data"]["name"], dict[str, tuple[str, ...]]()
    if given["given_as"] == "bytes" and len(given["shape"]) == 3 and given["shape"][0] in MODES:
        found["a picture (PNG, JPEG, ...)"] = _picture(given)
    if given["stored"] in ("NF", "NHW", "NHWC", "NCHW"):
        found[f"the arrays of {name}"] = _arrays(given, name)
    if given["given_as"] == "prepared":
        found[f"an array that {name} has prepared"] = _prepared(given)
    return {what: "\n".join((*lines, *_run(given["name"], outputs))) for what, lines in found.items()}


def _picture(given: Report) -> tuple[str, ...]:
    """Turned upright and laid on white where it is transparent, as `sparsify.loading.pixels` reads images."""
    channels, height, width = given["shape"]
    size = f".resize(({width}, {height}), Image.Resampling.BILINEAR)"
    upright = 'ImageOps.exif_transpose(Image.open("image.png")).convert("RGBA")'
    white = 'Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)'
    opened = (
        (f"image = np.asarray({upright}{size})",)
        if channels == 4
        else (f"image = {upright}", f'image = np.asarray({white}.convert("{MODES[channels]}"){size})')
    )
    if given["type"] == "uint8":
        x = "image[None, :, :, None]" if channels == 1 else "image[None]"
    else:
        x = f"{_normalised('image', given, last=True)}{'[None, None]' if channels == 1 else '.transpose(2, 0, 1)[None]'}"
    return ("import numpy as np, onnxruntime", "from PIL import Image, ImageOps", *opened, _ready(x, given))


def _arrays(given: Report, name: str) -> tuple[str, ...]:
    stored = given["stored"]
    if given["type"] == "uint8":
        x = "x" + {"NHW": "[..., None]", "NCHW": ".transpose(0, 2, 3, 1)"}.get(stored, "")
    else:
        x = _normalised(f"x{ARRANGED.get(stored, '')}", given, last=False)
    return ("import numpy as np, onnxruntime", f'x = np.load("{name}")["{given["array"]}"]', _ready(x, given))


def _prepared(given: Report) -> tuple[str, ...]:
    shape = ", ".join(("N", *map(str, given["shape"])))
    load = f'x = np.load("inputs.npy")  # {given["dtype"]} [{shape}]'
    return ("import numpy as np, onnxruntime", load, _ready("x", given))


def _ready(x: str, given: Report) -> str:
    cast = "" if given["type"] == "uint8" else f".astype(np.{given['dtype']})"
    bracketed = f"({x})" if cast and " " in x and not x.startswith("((") else x
    return f"x = {bracketed}{cast}"


def _run(taken: str, outputs: Sequence[str] | None) -> tuple[str, ...]:
    session, fed = 'onnxruntime.InferenceSession("model.onnx")', f"{{{json.dumps(taken)}: x}}"
    if outputs is None:  # a report of an earlier version does not know them
        return (f"print(*{session}.run(None, {fed}))",)
    if PROBABILITIES in outputs or len(outputs) == 1:
        shown = PROBABILITIES if PROBABILITIES in outputs else outputs[0]
        return (f"print({session}.run({json.dumps([shown])}, {fed})[0])",)
    return (f"names = {json.dumps([*outputs])}", f"print(dict(zip(names, {session}.run(names, {fed}))))")


def _normalised(x: str, given: Report, *, last: bool) -> str:
    """An expression for ``(x / scale - mean) / std``, in parentheses where it is more than ``x``; ``last``: channels come last."""
    if given["scale"] not in (None, 1):
        x = f"{x} / {given['scale']:g}"
    mean, std = given["mean"], given["std"]
    if mean is None or std is None:
        return f"({x})" if " " in x else x
    return f"(({x} - {_column(mean, given, last=last)}) / {_column(std, given, last=last)})"


def _column(values: Sequence[float], given: Report, *, last: bool) -> str:
    """Numbers per channel as they are subtracted from pixels [H, W, C] (``last``) or inputs [N, C, ...]."""
    shortest = [repr(value) for value in values]
    if len(values) == 1:
        return shortest[0]
    text = f"np.array([{', '.join(shortest)}])"
    trailing = len(given["shape"]) - 1
    return text if last or not trailing else f"{text}.reshape({', '.join(['-1', *['1'] * trailing])})"
