"""The lines that a report shows for running its file: executed as they stand, they have the accuracy that the report states."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsify.errors import DataError, RecipeError
from sparsify.loading import load_data
from sparsify.loading.columns import encode
from sparsify.reading.digits import digits_arrays
from sparsify.reading.pixels import decoded
from sparsify.reports.usage import usage
from sparsify.runs.pairs import parse_pairs
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run

MODEL = """
from torch import nn

def grey(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
def colour(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))
"""
FEED = """
import json, sys
for name in ("torch", "sparsify", "onnx", "torchvision", "scipy", "sklearn"):
    sys.modules[name] = None
found = []
code, files = json.loads(sys.stdin.read())
for file in files:
    exec(code.replace("image.png", file), {"print": found.append})
print(json.dumps([int(row.argmax()) for rows in found for row in rows]))
"""
SMALL = {"method": "static", "sparsity": 0.5, "epochs": 15, "batch_size": 32, "lr": 0.1, "warmup": 0, "threads": 1}


def digits(count: int = 300):
    """Bytes [N, 8, 8] and labels: the first so many of each part of scikit-learn's digits."""
    given = digits_arrays()
    return {name: value[: count if "train" in name else 60] for name, value in given.items()}


def tinted(x: np.ndarray) -> np.ndarray:
    """[N, 8, 8, 3]: channels that differ, so that their order matters."""
    return np.stack([x, 255 - x, x // 2], axis=-1)


def pictures(folder: Path, parts) -> None:
    for part in ("train", "test"):
        for index, (image, label) in enumerate(zip(parts[f"x_{part}"], parts[f"y_{part}"], strict=True)):
            where = folder / part / str(label)
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(where / f"{index:03}.png")


def lines_of(out: Path) -> list[str]:
    return [
        html.unescape(text)
        for text in re.findall(r'<pre class="usage">(.*?)</pre>', (out / "report.html").read_text(), re.S)
    ]


def decisions(out: Path, code: str, files=("image.png",)) -> np.ndarray:
    done = subprocess.run(
        [sys.executable, "-c", FEED],
        input=json.dumps([code, list(map(str, files))]),
        cwd=out,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("folder", {}),
        ("folder", {"export_input": "uint8", "image_size": 8}),
        ("NHWC", {"mean": [0.2, 0.7, 0.1], "std": [0.3, 0.3, 0.2]}),
        ("NHW", {"export_input": "uint8"}),
        ("NF", {"mean": [0.4], "std": [0.25]}),
    ],
)
def test_the_lines_of_the_report_have_the_accuracy_of_the_report(tmp_path, kind, changes):
    (tmp_path / "m.py").write_text(MODEL)
    parts, grey = digits(), kind in ("NHW", "NF")
    for part in ("train", "test"):
        x = parts[f"x_{part}"]
        parts[f"x_{part}"] = (
            x if kind == "NHW" else x.reshape(len(x), 64).astype(np.float32) / 255 if kind == "NF" else tinted(x)
        )
    data = tmp_path / ("pictures" if kind == "folder" else "d.npz")
    if kind == "folder":
        pictures(data, parts)
    else:
        np.savez(data, **parts)
    model = f"{tmp_path}/m.py:{'grey' if grey else 'colour'}"
    report = run(
        parse_recipe(None, {**SMALL, "model": model, "data": str(data), **changes}), tmp_path / "a", timed=False
    )
    codes = lines_of(tmp_path / "a")
    assert all(len(code.splitlines()) <= 6 for code in codes)
    truth, seen = parts["y_test"], 0
    for code in codes:
        if "image.png" in code:
            order = (
                [path for label in range(10) for path in sorted((data / "test" / str(label)).glob("*.png"))]
                if kind == "folder"
                else []
            )
            if not order:
                order = [tmp_path / f"{index}.png" for index in range(len(truth))]
                for path, image in zip(order, parts["x_test"], strict=True):
                    Image.fromarray(image).save(path)
                wanted = truth
            else:
                wanted = np.array([int(path.parent.name) for path in order])
            found = decisions(tmp_path / "a", code, order)
        else:
            found, wanted = decisions(tmp_path / "a", code), truth
        assert float((found == wanted).mean()) == report["model"]["accuracy"] > 0.3
        seen += 1
    assert seen == {"folder": 1, "NHWC": 2, "NHW": 2, "NF": 1}[kind]
    section = report["input"]
    assert section["type"] == changes.get("export_input", "float") and section["shape"] == (
        [64] if kind == "NF" else [1 if grey else 3, 8, 8]
    )
    if "mean" in changes:
        np.testing.assert_allclose(section["mean"], np.broadcast_to(changes["mean"], len(section["mean"])), rtol=1e-6)


def photographs(folder: Path) -> dict[str, Path]:
    """Pictures as people have them: transparent in several modes, turned, grey, with a palette."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 4), dtype=np.uint8)
    over = Image.fromarray(noise)
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "alpha.png": (over, {}),
        "grey-alpha.png": (over.convert("LA"), {}),
        "palette.png": (over.quantize(8), {}),
        "colour-key.png": (over.convert("RGB"), {"transparency": tuple(map(int, noise[0, 0, :3]))}),
        "opaque.png": (over.convert("RGB"), {}),
        "grey.png": (over.convert("L"), {}),
        "turned.jpg": (over.convert("RGB"), {"exif": turned}),
        "turned-alpha.png": (over, {"exif": turned}),
        "print.jpg": (over.convert("CMYK"), {}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return {name: folder / name for name in made}


@pytest.mark.filterwarnings("ignore:some images are transparent")
@pytest.mark.parametrize("size", [(8, 12), (12, 8), (5, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_lines_read_a_picture_as_loading_does(tmp_path, channels, size):
    given = {"shape": [channels, *size], "given_as": "bytes", "stored": "files", "type": "uint8", "name": "x"}
    [code] = usage({"input": given, "data": {"name": "pictures"}}).values()
    shown = code[: code.index("print(")].replace("import numpy as np, onnxruntime", "import numpy as np")
    for name, path in photographs(tmp_path).items():
        names: dict[str, np.ndarray] = {}
        exec(shown.replace("image.png", str(path)), names)
        np.testing.assert_array_equal(names["x"][0], decoded(path, name, size, channels=channels), err_msg=name)


def test_pictures_with_four_channels_keep_their_transparency(tmp_path):
    given = {
        "shape": [4, 8, 12],
        "given_as": "bytes",
        "stored": "NHWC",
        "type": "uint8",
        "name": "x",
        "array": "x_test",
    }
    code = next(iter(usage({"input": given, "data": {"name": "d.npz"}}).values()))
    names: dict[str, np.ndarray] = {}
    exec(code[: code.index("print(")].replace("image.png", str(photographs(tmp_path)["alpha.png"])), names)
    np.testing.assert_array_equal(names["x"][0], np.asarray(Image.open(tmp_path / "alpha.png")))


class Told:
    """A session that only tells the metadata of its file."""

    def __init__(self, **metadata: str) -> None:
        self.custom_metadata_map = metadata

    def get_modelmeta(self) -> Told:
        return self


def prepared(code: str, **metadata: str):
    """What the lines feed the file, without running it."""
    names: dict[str, object] = {"SESSION": Told(**metadata)}
    exec(code[: code.index("print(")].replace('onnxruntime.InferenceSession("model.onnx")', "SESSION"), names)
    return names["x"]


def several(data, name: str) -> dict[str, str]:
    rows = [
        {"name": key, "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape[1:])}
        for key, value in data.test.batch(torch.arange(2)).inputs.items()
    ]
    rows = [row | ({"array": f"x_test.{row['name']}"} if data.stored == "named" else {}) for row in rows]
    return usage({"inputs": rows, "data": {"name": name, "preparation": data.preparation}, "outputs": ["logits"]})


def test_the_lines_prepare_several_inputs_as_loading_does(tmp_path):
    parts, arrays = digits(), dict[str, np.ndarray]()
    for part in ("train", "test"):
        x = parts[f"x_{part}"]
        arrays |= {
            f"x_{part}.grey": x,
            f"x_{part}.colour": tinted(x),
            f"x_{part}.planes": tinted(x).transpose(0, 3, 1, 2),
        }
        arrays |= {
            f"x_{part}.ids": x[:, 0].astype(np.int32),
            f"x_{part}.seen": x[:, 0] > 99,
            f"x_{part}.ink": x.mean((1, 2)),
        }
        arrays |= {f"y_{part}": parts[f"y_{part}"]}
    np.savez(tmp_path / "d.npz", **arrays)
    data = load_data(str(tmp_path / "d.npz"), seed=0)
    [(what, code)] = several(data, str(tmp_path / "d.npz")).items()
    assert what == f"the arrays of {tmp_path / 'd.npz'}" and code.endswith('.run(["logits"], x)[0])')
    wanted, found = data.test.batch(torch.arange(60)).inputs, prepared(code)
    assert isinstance(found, dict) and list(found) == list(wanted)
    for name, value in wanted.items():
        assert str(found[name].dtype) == str(value.dtype).removeprefix("torch.")
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_lines_name_several_inputs_that_only_their_user_can_prepare(tmp_path):
    parts = digits(120)
    np.savez(tmp_path / "x.npz", **parts)
    (tmp_path / "f.py").write_text(
        "import numpy as np\n"
        f"d = dict(np.load({str(tmp_path / 'x.npz')!r}))\n"
        "def data():\n"
        "    return [({'seen': d[f'x_{p}'][:, 0] > 99, 'rows': d[f'x_{p}'] / 255}, d[f'y_{p}']) for p in ('train', 'test')]\n"
    )
    data = load_data(f"{tmp_path / 'f.py'}:data", seed=0)
    [(what, code)] = several(data, "f.py:data").items()
    assert what == "arrays prepared as those of f.py:data are"
    assert '"seen": np.load("seen.npy"),  # bool [N, 8]' in code and "# float32 [N, 8, 8]" in code


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.filterwarnings("ignore:.*(with a single value|columns are separated)")
def test_the_lines_prepare_the_rows_of_a_table_as_loading_does(tmp_path, separator):
    parts, path = digits(40), tmp_path / "t.csv"
    texts = [
        ["dark" if row[0] > 100 else "pale", *row, "same", "7", label]
        for row, label in zip(parts["x_train"][:, 3].tolist(), parts["y_train"], strict=True)
    ]
    header = ["shade", *(f"p{k} " for k in range(8)), "land", "year", "digit"]
    path.write_text("\n".join(separator.join(map(str, row)) for row in (header, *texts)) + "\n", encoding="utf-8-sig")
    data = load_data(str(path), seed=0, target=["digit"], test_holdout=0.3, task="regression")
    given = {"stored": "table", "given_as": "prepared", "name": "x", "shape": [13], "dtype": "float32", "type": "float"}
    report = {"input": given, "data": {"name": str(path), "preparation": data.preparation}, "outputs": ["logits"]}
    [(what, code)] = usage(report).items()
    assert what == f"the rows of {path}" and code.endswith('session.run(["logits"], {"x": x})[0])')
    found = np.asarray(prepared(code, preparation=json.dumps(data.preparation)))
    wanted = encode(data.preparation, [dict(zip((name.strip() for name in header), row, strict=True)) for row in texts])
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["data.mean=0.5"], "go together, and std is missing"),
        (["data.mean=0.5", "data.std=0"], "std numbers above 0"),
        (["data.mean=0.5,0.5", "data.std=1"], "mean has 2 numbers, the inputs 1 channels"),
        (["data.mean=0.5", "data.std=1", "data.normalise=none"], "Leave one of the two out"),
        (["data.mean=black", "data.std=1"], r"data\.mean.*found 'black'"),
    ],
)
def test_a_mean_that_cannot_be_meant_is_refused(pairs, message):
    with pytest.raises((DataError, RecipeError), match=message):
        recipe = parse_recipe(None, parse_pairs(pairs))
        load_data("digits", seed=0, normalise=recipe.normalise == "auto", mean=recipe.mean, std=recipe.std)


@pytest.mark.parametrize(
    ("outputs", "last"),
    [
        (["logits", "probabilities"], ['print(SESSION.run(["probabilities"], {"x": x})[0])']),
        (["logits"], ['print(SESSION.run(["logits"], {"x": x})[0])']),
        (["a", "b"], ['names = ["a", "b"]', 'print(dict(zip(names, SESSION.run(names, {"x": x}))))']),
        (None, ['print(*SESSION.run(None, {"x": x}))']),
    ],
)
def test_the_lines_ask_for_outputs_that_the_file_has(outputs, last):
    given = {
        "shape": [4],
        "given_as": "prepared",
        "stored": "prepared",
        "type": "float",
        "dtype": "float32",
        "name": "x",
    }
    [code] = usage({"input": given, "data": {"name": "d"}, "outputs": outputs}).values()
    assert code.replace('onnxruntime.InferenceSession("model.onnx")', "SESSION").splitlines()[3:] == last
