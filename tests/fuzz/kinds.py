"""Every kind of file that comes from elsewhere: a good one, how to spoil it, and what reads it.

One file because the three are read together.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image
from safetensors.torch import save as save_tensors
from torch import nn

import sparsify as sp
from sparsify.evaluation import Preparation, evaluate
from sparsify.loading import digits_cnn, load_data, load_model
from sparsify.loading.exported import load_exported
from sparsify.reports import compare, write_report
from sparsify.reports.folder import read_folder
from sparsify.runs.grid import parse_grid
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import run
from sparsify.training import load_checkpoint
from sparsify.training.checkpoint import save_checkpoint
from tests.cases import digits
from tests.fuzz import mutations as m


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        share: of all cases.
        good: writes an unspoiled file, or files, into a folder; returns what to give to ``read``.
        make: as ``good``, spoiled.
        read: the door of the package.
        writes: whether the door may write below the folder.
    """

    name: str
    share: float
    good: Callable[[Path], Path]
    make: Callable[[random.Random, Path], Path]
    read: Callable[[Path], Any]
    writes: bool = False


@cache
def program() -> bytes:
    """A masked program with batch norm, dropout, attention, taps and a calibration head."""
    torch.manual_seed(0)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.1)
            )
            self.attention = nn.MultiheadAttention(36, 2, batch_first=True)
            self.fc = nn.Linear(144, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.stem(x).flatten(2)
            return self.fc((tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).flatten(1))

    traced = sp.trace(Small(), (torch.rand(2, 1, 8, 8),))
    passes = "insert-masks{density=0.5} | insert-gradient-taps | attach-calibration-head"
    buffer = Path(_folder(), "good.sparsify")
    sp.Pipeline.parse(passes).run(traced)[0].save(buffer)
    return buffer.read_bytes()


@cache
def _folder() -> str:
    import atexit
    import tempfile

    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def make_program(draw: random.Random, folder: Path) -> Path:
    content, path = m.parts(program()), folder / "x.sparsify"
    match draw.randrange(10):
        case 0 | 1:
            path.write_bytes(m.spoiled(program(), draw))
        case 2:
            content["state.safetensors"] = m.spoiled(content["state.safetensors"], draw)
            path.write_bytes(m.zipped(content))
        case 3:
            content["program.json"] = m.spoiled(content["program.json"], draw)
            path.write_bytes(m.zipped(content))
        case _:
            content["program.json"] = m.dumped(m.structure(json.loads(content["program.json"]), draw)).encode(
                "utf-8", "surrogatepass"
            )
            path.write_bytes(m.zipped(content, draw))
    return path


def read_program(path: Path) -> None:
    loaded = sp.Program.load(path)
    loaded.text()
    sp.Pipeline.parse("fold-masks").run(loaded)


@cache
def exported() -> bytes:
    buffer, shapes = io.BytesIO(), ({0: torch.export.Dim("batch")},)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).eval()
    torch.export.save(torch.export.export(model, (torch.rand(2, 1, 8, 8),), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


def make_exported(draw: random.Random, folder: Path) -> Path:
    path, content = folder / "x.pt2", m.parts(exported())
    if draw.random() < 0.3:
        path.write_bytes(m.spoiled(exported(), draw))
        return path
    name = draw.choice([part for part in content if part.endswith(".json")])
    content[name] = m.dumped(m.structure(json.loads(content[name]), draw)).encode("utf-8", "surrogatepass")
    path.write_bytes(m.zipped(content, draw))
    return path


@cache
def arrays() -> bytes:
    buffer, (x, y) = io.BytesIO(), digits(40)
    pixels = (x.numpy() * 15).astype(np.uint8)
    np.savez(buffer, x_train=pixels, y_train=y.numpy() % 3, x_test=pixels, y_test=y.numpy() % 3)
    return buffer.getvalue()


def make_arrays(draw: random.Random, folder: Path) -> Path:
    path, content = folder / "x.npz", m.parts(arrays())
    if draw.random() < 0.4:
        path.write_bytes(m.spoiled(arrays(), draw))
        return path
    name = draw.choice(list(content))
    header = draw.choice(
        [
            "{'descr': '|O', 'fortran_order': False, 'shape': (4,), }",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8), }",
            f"{{'descr': {m.CODE}, 'fortran_order': False, 'shape': (1,), }}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (40, 1, 0, 8), }",
            "{'descr': '<i8', 'fortran_order': True, 'shape': (40,), }",
            "{'descr': '|S1', 'fortran_order': False, 'shape': (40,), }",
            "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (4,), }",
            "{" * 300,
            "{'descr': '<m8[s]', 'fortran_order': False, 'shape': (10,), }",
        ]
    ).ljust(117)
    data = content[name]
    content[name] = (
        m.spoiled(data, draw) if draw.random() < 0.5 else data[:10] + header.encode()[:117] + b"\n" + data[128:]
    )
    path.write_bytes(m.zipped(content, draw))
    return path


@cache
def tensors() -> bytes:
    torch.manual_seed(0)
    return save_tensors(digits_cnn().state_dict())


def make_tensors(draw: random.Random, folder: Path) -> Path:
    path, content = folder / "x.safetensors", tensors()
    length = int.from_bytes(content[:8], "little")
    if draw.random() < 0.4:
        path.write_bytes(m.spoiled(content, draw))
        return path
    header = m.dumped(m.structure(json.loads(content[8 : 8 + length]), draw)).encode("utf-8", "surrogatepass")
    claimed = draw.choice([len(header)] * 6 + [2**40, 2**63, 0])
    path.write_bytes(claimed.to_bytes(8, "little") + header + content[8 + length :])
    return path


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, (m.CODE,)


@cache
def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(digits_cnn().state_dict(), buffer)
    return buffer.getvalue()


def make_pickled(draw: random.Random, folder: Path) -> Path:
    path, content = folder / "x.pt", m.parts(pickled())
    match draw.randrange(5):
        case 0:
            torch.save({**digits_cnn().state_dict(), "0.weight": Bomb()}, path)
        case 1:
            name = next(part for part in content if part.endswith("data.pkl"))
            content[name] = m.spoiled(content[name], draw)
            path.write_bytes(m.zipped(content, draw))
        case 2:
            torch.save(m.structure({"a": [1, {"b": 2}], "state_dict": {"x": 1.0}}, draw), path)
        case _:
            path.write_bytes(m.spoiled(pickled(), draw))
    return path


CONTENT = {
    "key": "k",
    "program": {"w": torch.zeros(3, 4), "b": torch.zeros(3)},
    "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3, 4)}}},
    "trainer": {"steps": 3, "counts": {"rounds": 1}, "scores": {"w": (torch.ones(2), None)}},
    "history": [{"step": 3, "loss": 0.5}],
    "sums": [0.0, 1.0],
}


@cache
def checkpoint() -> bytes:
    path = Path(_folder(), "checkpoint.pt")
    save_checkpoint(path, CONTENT)
    return path.read_bytes()


def make_checkpoint(draw: random.Random, folder: Path) -> Path:
    path, content = folder / "checkpoint.pt", m.parts(checkpoint())
    match draw.randrange(4):
        case 0:
            torch.save({"format": 1, "form": "x", **CONTENT, draw.choice([*CONTENT]): Bomb()}, path)
        case 1:
            name = next(part for part in content if part.endswith("data.pkl"))
            content[name] = m.spoiled(content[name], draw)
            path.write_bytes(m.zipped(content, draw))
        case 2:
            torch.save(
                {**torch.load(io.BytesIO(checkpoint()), weights_only=True), draw.choice([*CONTENT]): m.attack(draw)},
                path,
            )
        case _:
            path.write_bytes(m.spoiled(checkpoint(), draw))
    return path


@cache
def finished() -> Path:
    """The folder of a short run."""
    folder = Path(_folder(), "run")
    run(parse_recipe(None, {"method": "static", "epochs": 1, "threads": 1, "train_samples": 300}), folder)
    return folder


FILES = ("metrics.json", "latency.json", "answers.json", "history.jsonl", "recipe.toml", "program.sparsify")


def good_folder(folder: Path) -> Path:
    shutil.copytree(finished(), folder / "run")
    return folder / "run"


def make_folder(draw: random.Random, folder: Path) -> Path:
    target = good_folder(folder)
    name = draw.choices(FILES, weights=(10, 4, 4, 4, 1, 1))[0]
    content = (target / name).read_bytes()
    if name.endswith(".json") and draw.random() < 0.8:
        (target / name).write_bytes(m.dumped(m.structure(json.loads(content), draw)).encode("utf-8", "surrogatepass"))
    elif name.endswith(".jsonl") and draw.random() < 0.8:
        rows = m.structure([json.loads(line) for line in content.splitlines()], draw)
        (target / name).write_bytes(
            "\n".join(m.dumped(row) for row in (rows if isinstance(rows, list) else [rows])).encode(
                "utf-8", "surrogatepass"
            )
        )
    else:
        (target / name).write_bytes(m.spoiled(content, draw))
    return target


def read_run(path: Path) -> None:
    read_folder(path)
    if (path / "metrics.json").stat().st_size % 8 == 0:  # the page takes a second: of some
        write_report(path)


def make_recipe(draw: random.Random, folder: Path) -> Path:
    path = folder / "x.toml"
    lines = parse_recipe(None, {"baseline": True}).to_toml().splitlines()
    if draw.random() < 0.3:
        path.write_bytes(m.spoiled("\n".join(lines).encode(), draw))
        return path
    for _ in range(draw.choice([1, 1, 2])):
        at = draw.choice([index for index, line in enumerate(lines) if " = " in line])
        key = lines[at].partition(" =")[0]
        lines[at] = f"{key} = {_toml(m.attack(draw))}"
    if draw.random() < 0.3:
        lines += [
            "[grid]",
            f"methods = {_toml(draw.choice([['set', 'rigl'], [], 3, ['[/x]'], [['set']]]))}",
            f"sparsities = {_toml(draw.choice([[0.9], [2], ['x'], 0.5]))}",
            f"seeds = {_toml(draw.choice([[0, 1], [10**30], -1]))}",
        ]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    return m.dumped(value) if not isinstance(value, dict) else "{a = 1}"


def read_recipe(path: Path) -> None:
    text = path.read_bytes()
    (parse_grid(path) if b"[grid]" in text else parse_recipe(path, {}))


@cache
def network() -> bytes:
    path = Path(_folder(), "m.onnx")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    sp.export(sp.trace(model, (torch.rand(2, 1, 8, 8),)).eval(), path, inputs=(torch.rand(4, 1, 8, 8),))
    return path.read_bytes()


def make_network(draw: random.Random, folder: Path) -> Path:
    path = folder / "x.onnx"
    if draw.random() < 0.5:
        path.write_bytes(m.spoiled(network(), draw))
        return path
    model = onnx.load_from_string(network())
    tensor = draw.choice(model.graph.initializer)
    match draw.randrange(6):
        case 0:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", draw.choice(["/etc/passwd", "../../" + m.CANARY, "/dev/zero", "x.onnx"])),
                ("length", str(2**40)),
            ):
                tensor.external_data.add(key=key, value=value)
        case 1:
            tensor.dims[0] = draw.choice([2**40, 2**62, -1, 0])
        case 2:
            draw.choice(model.graph.node).op_type = draw.choice(["Own", "", "Loop", "If", m.CODE])
        case 3:
            draw.choice(model.graph.node).domain = draw.choice(["mine", "ai.onnx.ml", m.CODE])
        case 4:
            model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = draw.choice([2**40, -5, 0, 10**6])
        case _:
            model.opset_import[0].version = draw.choice([0, 99, 2**40])
    path.write_bytes(model.SerializeToString())
    return path


def read_network(path: Path) -> None:
    evaluate(path, "digits", preparation=Preparation(scale=255))


@cache
def image(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("RGB").save(buffer, form)
    return buffer.getvalue()


def good_images(folder: Path, form: str = "png") -> Path:
    for part in ("train", "test"):
        for name in ("a", "b"):
            target = folder / "images" / part / name
            target.mkdir(parents=True, exist_ok=True)
            for index in range(3):
                (target / f"{index}.{form}").write_bytes(image(form))
    return folder / "images"


def make_images(draw: random.Random, folder: Path) -> Path:
    form = draw.choice(["png", "jpeg", "gif", "bmp", "tiff", "webp"])
    good_images(folder, form)
    victim = folder / "images" / draw.choice(["train", "test"]) / "a" / f"{draw.randrange(3)}.{form}"
    if form == "png" and draw.random() < 0.3:  # a header of an enormous picture
        content = bytearray(image(form))
        content[16:24] = draw.choice([2**31 - 1, 100_000, 0]).to_bytes(4, "big") * 2
        victim.write_bytes(content)
    else:
        victim.write_bytes(m.spoiled(image(form), draw))
    return folder / "images"


def read_images(path: Path) -> None:
    data = load_data(str(path), seed=0, holdout=0.4, image_size=8)
    for part in (data.train, data.validation, data.test):
        part.batch(torch.arange(len(part)))


@cache
def table() -> bytes:
    rows = [f"{i % 7},{('Bern', 'Oslo')[i % 2]},{i / 3:.3f},{('no', 'yes')[i % 3 == 0]}" for i in range(40)]
    return "\r\n".join(["floor,city,size,sold", *rows]).encode()


def make_table(draw: random.Random, folder: Path) -> Path:
    path, rows = folder / "x.csv", [line.split(",") for line in table().decode().split("\r\n")]
    if draw.random() < 0.5:
        path.write_bytes(m.spoiled(table(), draw))
        return path
    strange = [
        "",
        "nan",
        "1e400",
        "-" + "9" * 400,
        m.CODE,
        '"',
        "a\nb",
        "\t;",
        "x" * 20_000,
        "\u202e",
        "NA",
        "0x10",
        "1_0",
        "\x00",
    ]
    for _ in range(draw.choice([1, 1, 3])):
        draw.choice(rows)[draw.randrange(4)] = draw.choice(strange)
    path.write_text("\n".join(draw.choice([",", ",", ";"]).join(row) for row in rows), newline="")
    return path


def read_csv(path: Path) -> None:
    load_data(str(path), seed=0, target=["sold"], test_holdout=0.2)


def quietly(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def silent(path: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(path)

    return silent


def whole(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return write


def _recipe() -> bytes:
    return parse_recipe(None, {"baseline": True}).to_toml().encode()


def _weights(path: Path) -> Any:
    return load_model("sparsify.loading:digits_cnn", weights=path)


KINDS = (
    Kind("program (.sparsify)", 0.27, whole("x.sparsify", program), make_program, quietly(read_program)),
    Kind("exported model (.pt2)", 0.05, whole("x.pt2", exported), make_exported, quietly(load_exported)),
    Kind(
        "arrays (.npz)", 0.13, whole("x.npz", arrays), make_arrays, quietly(lambda path: load_data(str(path), seed=0))
    ),
    Kind("table (.csv)", 0.03, whole("x.csv", table), make_table, quietly(read_csv)),
    Kind("weights (.safetensors)", 0.12, whole("x.safetensors", tensors), make_tensors, quietly(_weights)),
    Kind("weights (.pt)", 0.08, whole("x.pt", pickled), make_pickled, quietly(_weights)),
    Kind("checkpoint", 0.08, whole("checkpoint.pt", checkpoint), make_checkpoint, quietly(load_checkpoint)),
    Kind("run folder", 0.05, good_folder, make_folder, quietly(read_run), writes=True),
    Kind("recipe, grid (.toml)", 0.12, whole("x.toml", _recipe), make_recipe, quietly(read_recipe)),
    Kind(
        "ONNX for bench",
        0.02,
        whole("x.onnx", network),
        make_network,
        quietly(lambda path: compare({"x": path}, rounds=10)),
    ),
    Kind(
        "ONNX for evaluate",
        0.02,
        whole("x.onnx", network),
        make_network,
        quietly(read_network),
    ),
    Kind("image folder", 0.05, good_images, make_images, quietly(read_images)),
)
