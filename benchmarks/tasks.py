"""Every task and kind of input through `sparsify run` and a loop of one's own: trained dense and at 90 %, exported, run from the file.

python benchmarks/tasks.py --data ../shared/data [--rows regression,sequence] [--seed 1] [--json benchmarks/results/tasks.json]

The folder holds mnist.npz, tiny_shakespeare.txt and spoken_digits_logmel.npz. The figures of files are of ONNX Runtime over the test part.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch.utils import _pytree as pytree

import sparsify as sp
from sparsify.calibration import fit
from sparsify.files import write_atomically
from sparsify.ir import Program
from sparsify.ir.dimensions import parsed
from sparsify.loading import Data, load_data, load_model
from sparsify.passes import AttachCalibrationHead, fit_scale
from sparsify.reports.latency import machine
from sparsify.runs.artefacts import run_file
from sparsify.runs.recipe import Recipe, parse_recipe
from sparsify.runs.workflow import run
from sparsify.tasks import Regression, Task

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
Arrays = dict[str, np.ndarray]


def split(arrays: Mapping[str, np.ndarray], target: np.ndarray, test: int) -> Arrays:
    """Shuffled rows as the arrays of an .npz file; an input called ``x`` is an only one without a name."""
    order = np.random.default_rng(0).permutation(len(target))
    parts = {"train": order[test:], "test": order[:test]}
    found = {f"x_{p}" if n == "x" else f"x_{p}.{n}": v[rows] for p, rows in parts.items() for n, v in arrays.items()}
    return {**found, **{f"y_{part}": target[rows] for part, rows in parts.items()}}


def diabetes(folder: Path) -> Arrays:
    """How far a disease went in a year, from 10 figures of 442 patients."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    return split({"x": ((x - x.mean(0)) / x.std(0)).astype(np.float32)}, y.astype(np.float32), 88)


def questions(folder: Path) -> Arrays:
    """Of a digit: is it even, above 4, a prime, closed around a hole?"""
    images, digit = load_digits().images, load_digits().target
    asked = [digit % 2 == 0, digit > 4, np.isin(digit, [2, 3, 5, 7]), np.isin(digit, [0, 6, 8, 9])]
    return split({"x": (images * 15.9375).astype(np.uint8)}, np.stack(asked, 1).astype(np.int64), 360)


def tumours(folder: Path) -> Arrays:
    """Whether a tumour is benign, from 30 figures."""
    x, y = load_breast_cancer(return_X_y=True)
    return split({"x": ((x - x.mean(0)) / x.std(0)).astype(np.float32)}, y.astype(np.int64), 114)


def ink(folder: Path) -> Arrays:
    """For each pixel of an image of MNIST: 0 without ink, else 1 + the digit it is a stroke of."""
    with np.load(folder / "mnist.npz", allow_pickle=False) as held:
        x, digit = held["x_train"][:4000], held["y_train"][:4000]
    return split({"x": x}, np.where(x > 64, 1 + digit[:, None, None], 0).astype(np.int64), 1000)


def characters(folder: Path) -> np.ndarray:
    """The plays as numbers of characters, 0 to 64."""
    text = (folder / "tiny_shakespeare.txt").read_text(encoding="ascii")
    known = {character: i for i, character in enumerate(sorted(set(text)))}
    return np.array([known[character] for character in text], dtype=np.int64)


def text(folder: Path) -> Arrays:
    """48 characters of the plays, and the one that follows each."""
    rows = np.lib.stride_tricks.sliding_window_view(characters(folder), 49)[::200]
    return split({"ids": rows[:, :-1].copy()}, rows[:, 1:].copy(), 800)


def quarters(folder: Path) -> Arrays:
    """A mark and up to 31 words, filled up to 32, and the quarter of the plays that they are from; the 1998 most frequent have numbers."""
    words = re.findall(r"[A-Za-z']+|[.,:;!?-]", (folder / "tiny_shakespeare.txt").read_text(encoding="ascii"))
    known = {word: number for number, (word, _) in enumerate(Counter(words).most_common(1998))}
    rows = np.array([known.get(word, 1998) for word in words[: len(words) // 32 * 32]]).reshape(-1, 32)
    lengths = np.random.default_rng(0).integers(16, 33, size=len(rows))
    mask, place = np.arange(32) < lengths[:, None], np.arange(32)
    given = {"input_ids": np.where(mask & (place > 0), rows, 1999), "attention_mask": mask}
    quarter = np.arange(len(rows)) * 4 // len(rows)
    return split({name: values.astype(np.int64) for name, values in given.items()}, quarter.astype(np.int64), 1000)


def sums(folder: Path) -> Arrays:
    """Two images of digits, and the sum of the digits; no image of the test part is in the training part."""
    images, digit = (load_digits().images * 15.9375).astype(np.uint8), load_digits().target
    rng, found = np.random.default_rng(0), Arrays()
    for part, low, high, count in (("train", 0, 1400, 8000), ("test", 1400, 1797, 1000)):
        left, right = rng.integers(low, high, size=(2, count))
        found |= {f"x_{part}.left": images[left], f"x_{part}.right": images[right]}
        found[f"y_{part}"] = (digit[left] + digit[right]).astype(np.int64)
    return found


def spoken(folder: Path) -> Arrays:
    """Spoken digits, every other of 64 frames of 32 bands."""
    with np.load(folder / "spoken_digits_logmel.npz", allow_pickle=False) as held:
        found: Arrays = {f"y_{part}": held[f"y_{part}"].astype(np.int64) for part in ("train", "test")}
        for part in ("train", "test"):
            found[f"x_{part}.frames"] = (held[f"x_{part}"][:, :, ::2].transpose(0, 2, 1) / 127.5 - 1).astype(np.float32)
    return found


@dataclass(frozen=True)
class Row:
    """A line of the table; ``data`` makes an .npz file, or is the text of a factory.

    ``given`` are keys of the recipe beside those that all rows share; ``lengths`` are those at which the file is compared with its program.
    """

    what: str
    task: str
    model: str
    data: Callable[[Path], Arrays] | str
    epochs: int
    given: Mapping[str, Any] = field(default_factory=dict)
    lengths: Sequence[int] = ()


OWN, VIEWS = {"loss": f"{EXAMPLES / 'inva.py'}:loss"}, f"{EXAMPLES / 'inva.py'}:synthetic"
LONG = {"dynamic": ("ids:1=T", "T=1..128")}
WORDS = {"dynamic": ("input_ids:1=T", "attention_mask:1=T", "T=1..32"), "pattern": "unstructured", "lr": 0.001}
FRAMES = {"dynamic": ("frames:1=T",), "pattern": "unstructured", "lr": 0.005}
ROWS: dict[str, Row] = {
    "regression": Row("progress of diabetes, 10 columns", "regression", "tasks.py:table", diabetes, 60),
    "multilabel": Row("four questions about a digit", "multilabel", "tasks.py:questions", questions, 30),
    "binary": Row("benign tumours, 30 columns", "binary", "tasks.py:verdict", tumours, 40),
    "dense": Row("ink of MNIST by digit", "dense", "tasks.py:Pixels", ink, 8),
    "sequence": Row("next character, a transformer", "sequence", "tasks.py:Characters", text, 5, LONG, (1, 24, 96)),
    "dictionaries": Row("quarter of the plays, a BERT", "classification", "tasks.py:bert", quarters, 8, WORDS, (1, 24, 32)),
    "two inputs": Row("sum of two digits", "classification", "tasks.py:Pair", sums, 24),
    "sound": Row("spoken digits, a GRU", "classification", "tasks.py:Spoken", spoken, 20, FRAMES, (1, 32, 64)),
    "three images": Row("InVA, a loss of its own", "regression", "inva.py:inva", VIEWS, 50, OWN),
}  # fmt: skip


def main() -> int:
    """The exit code: 0."""
    arguments = _arguments()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = json.loads(arguments.json.read_text())["rows"] if arguments.json.exists() else []
    for name in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            result = {"row": name, **measure(_seeded(ROWS[name], arguments.seed), arguments.data, Path(folder))}
            result |= {"machine": dict(machine()), "torch": torch.__version__}
        print(json.dumps(result), flush=True)
        if arguments.seed:
            continue
        found = sorted(
            [*(row for row in found if row["row"] != name), result], key=lambda row: list(ROWS).index(row["row"])
        )
        write_atomically(arguments.json, encoded(found))
    print("\n".join(table(found)))
    return 0


def _seeded(row: Row, seed: int) -> Row:
    return dataclasses.replace(row, given={**row.given, "seed": seed})


def measure(row: Row, source: Path, folder: Path) -> dict[str, Any]:
    """Train a row by the command and by a loop, and run its files.

    Returns:
        figure: its name; dense, sparse, loop: its value on the test part, of the files in ONNX Runtime; difference: the largest of what the
        files and their programs differ by, as a share of what is allowed; lengths: those at which the file was compared with its
        program as well; density and bytes of the sparse file; seconds.
    """
    started, path = time.perf_counter(), row.data
    if not isinstance(path, str):
        path = str(folder / "data.npz")
        np.savez(path, **row.data(source))  # type: ignore[operator, arg-type]
    common = {
        "optimizer": "adamw",
        "lr": 0.003,
        "warmup": 0,
        "threads": 1,
        "sparsity": 0.9,
        "pattern": "grouped:16",
        "baseline": True,
    }
    keys = {
        "model": f"{EXAMPLES}/{row.model}",
        "data": path,
        "task": row.task,
        "epochs": row.epochs,
        **common,
        **row.given,
    }
    recipe = parse_recipe(None, keys)
    report = run(recipe, folder / "run", timed=False, rehearsed=True)
    assert (folder / "run" / "report.html").exists()
    data = load_data(recipe.data, seed=recipe.seed, task=recipe.task)
    task = recipe.build_task()
    program, parity = own_loop(recipe, task, data, folder / "loop.onnx")
    files = {
        "dense": folder / "run" / "dense.onnx",
        "sparse": folder / "run" / "model.onnx",
        "loop": folder / "loop.onnx",
    }
    figures = {name: figure(task, file, program, data) for name, file in files.items()}
    key = next(iter(figures["dense"]))
    return {
        "what": row.what,
        "task": row.task,
        "inputs": [spec.name for spec in program.input_specs],
        "figure": key,
        **{name: found[key] for name, found in figures.items()},
        "difference": max(parity, *(report[part]["parity"]["share"] for part in ("dense", "model"))),
        "lengths": [length for length in row.lengths if agrees(files["loop"], program, data, length)],
        "pattern": recipe.pattern,
        "density": report["model"]["density"],
        "bytes": report["model"]["bytes"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def own_loop(recipe: Recipe, task: Task, data: Data, path: Path) -> tuple[Program, float]:
    """The same training written out: the trained program, and what its file differs by as a share of what is allowed."""
    torch.manual_seed(recipe.seed)
    dynamic, limits = parsed(recipe.dynamic)
    program = sp.trace(load_model(recipe.model), data.example(), dynamic=dynamic, limits=limits, task=task)
    if isinstance(task, Regression) and task.criterion == "mse":
        fit_scale(program, data.train.targets)
    per_epoch = len(data.train) // recipe.batch_size
    total = recipe.epochs * per_epoch
    optimizer = torch.optim.AdamW(program.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    method = sp.methods.build("gmp", {"density": recipe.density, "pattern": recipe.pattern})
    trainer = sp.attach(method, program.train(), optimizer, total_steps=total, task=task)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(data.train)).split(recipe.batch_size)[:per_epoch]:
            inputs, target = data.train.batch(rows)
            trainer.loss(program.call(inputs), target).backward()
            trainer.step()
            schedule.step()
            optimizer.zero_grad()
    trainer.finish()
    program.eval()
    if task.heads:
        program = sp.Pipeline((AttachCalibrationHead(kind=task.heads[0], task=task.name),))(program)
        fit(program, data.validation, task=task)
    result = sp.export(program, path, inputs=data.example(64), task=task.name)
    return program, result.parity.share


def figure(task: Task, file: Path, program: Program, data: Data) -> dict[str, float]:
    """The task's figures of what a file returns for the test part."""
    outputs = run_file(file, data.test)
    return task.figures(outputs[task.output or program.output_names("eval")[0]], data.test.targets)


def agrees(file: Path, program: Program, data: Data, length: int) -> bool:
    """Compare a file with its program at another length, on inputs cut to it.

    Raises:
        AssertionError: If they differ.
    """
    inputs = pytree.tree_map(lambda value: torch.cat([value, value], 1)[:, :length], data.example(3))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    got = session.run(None, {name: inputs[name].numpy() for name in names})
    with torch.no_grad():
        wanted = program.outputs(**inputs)
    for name, value in zip([output.name for output in session.get_outputs()], got, strict=True):
        torch.testing.assert_close(torch.from_numpy(np.asarray(value)), wanted[name], atol=1e-4, rtol=1e-4)
    return True


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        "| | task | inputs | figure | dense | 90 % | 90 %, own loop | lengths | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        named = ", ".join(f"`{name}`" for name in row["inputs"])
        figures = [f"{row[key]:.3f}" for key in ("dense", "sparse", "loop")]
        told = [row["what"], f"`{row['task']}`", named, row["figure"].replace("_", " "), *figures]
        columns = [*told, ", ".join(map(str, row["lengths"])), f"{100 * row['difference']:.0f} %"]
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def encoded(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One row per line, each with its machine."""
    lines = ",\n ".join(json.dumps(row) for row in rows)
    return f'{{"rows": [\n {lines}\n]}}\n'.encode()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument(
        "--rows", type=lambda text: text.split(","), default=list(ROWS), help="of the table, with commas"
    )
    parser.add_argument("--seed", type=int, default=0, help="of a run; figures of seed 0 are kept, others only printed")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "tasks.json", help="where figures are kept"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
