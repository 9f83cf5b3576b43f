"""Makes the lines of Python in a report that prepare inputs and run the file, with numpy, pillow and onnxruntime only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by the number of channels; the fourth channel is transparency."""
PROBABILITIES = "probabilities"
SESSION = 'onnxruntime.InferenceSession("model.onnx")'
ARRANGED = {"NHW": "[:, None]", "NHWC": ".transpose(0, 3, 1, 2)"}
"""Expressions that turn stored arrays into [N, C, H, W], by layout; other layouts need none."""


def usage(report: Report) -> dict[str, str]:
    """Return the lines for each kind of input that fits the file's data, by a description of that input.

    The lines print ``probabilities`` if the file has them, or else all ``outputs`` by name. A report without ``input`` and ``inputs`` has
    none.

    Args:
        report: content of ``metrics.json``.
    """
    given, outputs = report.get("input"), report.get("outputs")
    if several := report.get("inputs"):
        return {what: "\n".join((*lines, *_run("x", outputs))) for what, lines in _several(several, report["data"])}
    if not given:
        return {}
    name, found = report["data"]["name"], dict[str, tuple[str, ...]]()
    if given["stored"] == "table" and "delimiter" in report["data"].get("preparation", {}):
        lines = (
            *_table(name, report["data"]["preparation"]),
            *_run(f"{{{json.dumps(given['name'])}: x}}", outputs, "session"),
        )
        return {f"the rows of {name}": "\n".join(lines)}
    if given["given_as"] == "bytes" and len(given["shape"]) == 3 and given["shape"][0] in MODES:
        found["a picture (PNG, JPEG, ...)"] = _picture(given)
    if given["stored"] in ("NF", "NHW", "NHWC", "NCHW"):
        found[f"the arrays of {name}"] = _arrays(given, name)
    if given["given_as"] == "prepared":
        found[f"an array that {name} has prepared"] = _prepared(given)
    fed = f"{{{json.dumps(given['name'])}: x}}"
    return {what: "\n".join((*lines, *_run(fed, outputs))) for what, lines in found.items()}


def _several(rows: Sequence[Report], data: Report) -> list[tuple[str, tuple[str, ...]]]:
    """Return the lines for several or named inputs, with a description: the arrays of an archive, or arrays that the user prepares."""
    told = data.get("preparation", {}).get("inputs", {})
    archive = all(row.get("array") and told.get(row["name"], {}).get("stored") != "files" for row in rows)
    lines = [
        "import numpy as np, onnxruntime",
        *([f"data = np.load({json.dumps(data['name'])})"] if archive else ()),
        "x = {",
    ]
    for row in rows:
        name, kind = json.dumps(row["name"]), {"bool": "bool_"}.get(row["dtype"], row["dtype"])
        if archive:
            step = told.get(row["name"], {})
            plan = {"scale": step.get("scale"), "mean": step.get("mean"), "std": step.get("std"), "shape": row["shape"]}
            x = _normalised(
                f"data[{json.dumps(row['array'])}]{ARRANGED.get(step.get('stored', ''), '')}", plan, last=False
            )
            lines.append(f"    {name}: {x}.astype(np.{kind}),")
        else:
            shape = ", ".join(("N", *map(str, row["shape"])))
            lines.append(f"    {name}: np.load({json.dumps(row['name'] + '.npy')}),  # {row['dtype']} [{shape}]")
    what = f"the arrays of {data['name']}" if archive else f"arrays prepared as those of {data['name']} are"
    return [(what, (*lines, "}"))]


def _table(name: str, preparation: Report) -> tuple[str, ...]:
    """Return lines that encode the rows of a table by the metadata of the file; see `sparsify.loading.columns.encode`."""
    separated = "" if preparation["delimiter"] == "," else f", delimiter={json.dumps(preparation['delimiter'])}"
    return (
        "import csv, json, numpy as np, onnxruntime",
        f"session = {SESSION}",
        'features = json.loads(session.get_modelmeta().custom_metadata_map["preparation"])["features"]',
        "def numbers(feature, text):",
        '    if "categories" in feature:',
        '        return [float(text == category and not feature.get("constant")) for category in feature["categories"]]',
        '    return [0.0 if feature.get("constant") else (float(text) - feature["mean"]) / feature["std"]]',
        f'with open({json.dumps(name)}, encoding="utf-8-sig", newline="") as file:',
        f"    rows = [{{key.strip(): text.strip() for key, text in row.items()}} for row in csv.DictReader(file{separated})]",
        'x = [[value for feature in features for value in numbers(feature, row[feature["column"]])] for row in rows]',
        "x = np.array(x, np.float32)",
    )


def _picture(given: Report) -> tuple[str, ...]:
    """Return lines that turn a picture upright and lay it on white if it is transparent, as `sparsify.reading.pixels` does."""
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


def _run(fed: str, outputs: Sequence[str] | None, session: str = SESSION) -> tuple[str, ...]:
    if outputs is None:  # a report of an earlier version does not list them
        return (f"print(*{session}.run(None, {fed}))",)
    if PROBABILITIES in outputs or len(outputs) == 1:
        shown = PROBABILITIES if PROBABILITIES in outputs else outputs[0]
        return (f"print({session}.run({json.dumps([shown])}, {fed})[0])",)
    return (f"names = {json.dumps([*outputs])}", f"print(dict(zip(names, {session}.run(names, {fed}))))")


def _normalised(x: str, given: Report, *, last: bool) -> str:
    """Return an expression for ``(x / scale - mean) / std``, in parentheses unless it is just ``x``; ``last``: channels come last."""
    if given["scale"] not in (None, 1):
        x = f"{x} / {given['scale']:g}"
    mean, std = given["mean"], given["std"]
    if mean is None or std is None:
        return f"({x})" if " " in x else x
    return f"(({x} - {_column(mean, given, last=last)}) / {_column(std, given, last=last)})"


def _column(values: Sequence[float], given: Report, *, last: bool) -> str:
    """Return an expression for numbers per channel that broadcasts against pixels [H, W, C] (``last``) or inputs [N, C, ...]."""
    shortest = [repr(value) for value in values]
    if len(values) == 1:
        return shortest[0]
    text = f"np.array([{', '.join(shortest)}])"
    trailing = len(given["shape"]) - 1
    return text if last or not trailing else f"{text}.reshape({', '.join(['-1', *['1'] * trailing])})"
