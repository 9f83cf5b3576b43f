"""The `sparsify` command: parse, call, print."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sparsify.errors import RecipeError, SparsifyError
from sparsify.ir import Program
from sparsify.ir.serialization import write_atomically
from sparsify.methods.registry import METHODS, options
from sparsify.parts.patterns import SPELLINGS
from sparsify.passes import PASSES, Pipeline, dump_to, print_after, print_diff
from sparsify.recipe import Recipe, parse_recipe
from sparsify.reports import compare, headline, write_report
from sparsify.training import Interrupted
from sparsify.workflow import ARTEFACTS, recipe_data, traced
from sparsify.workflow import export_saved as export_workflow
from sparsify.workflow import run as run_workflow

app = typer.Typer(
    help="Train sparse, calibrated networks and export them as verified ONNX.",
    no_args_is_help=True,
    add_completion=False,
)
console = Console()


@app.command()
def run(
    model: Annotated[
        str | None,
        typer.Argument(help="file.py:factory, package.module:factory or model.pt2; a small CNN by default"),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/digits"),
    recipe: Annotated[Path | None, typer.Option(help="TOML file; options given here override its keys")] = None,
    data: Annotated[str | None, typer.Option(help="digits, file.npz, a folder of images, or file.py:factory")] = None,
    weights: Annotated[str | None, typer.Option(help="safetensors or a state dict to start from")] = None,
    trust_pickle: Annotated[
        bool | None, typer.Option(help="let the file of weights run the code it may contain")
    ] = None,
    method: Annotated[str | None, typer.Option(help="see `sparsify methods`")] = None,
    sparsity: Annotated[float | None, typer.Option(help="inactive fraction, in (0, 1)")] = None,
    pattern: Annotated[str | None, typer.Option(help="see `sparsify patterns`")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the training data")] = None,
    baseline: Annotated[bool | None, typer.Option(help="train the dense model too, same budget")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="any other recipe key, as key=value; repeatable")
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on from the last checkpoint")] = False,
    overwrite: Annotated[bool, typer.Option(help="replace an earlier run in the folder")] = False,
) -> None:
    """Trace, train sparsely, calibrate, export to ONNX and verify. Without arguments: 90 % sparse digits in under a minute."""
    given = {"model": model, "data": data, "method": method, "sparsity": sparsity, "pattern": pattern}
    given |= {
        "weights": weights,
        "trust_pickle": trust_pickle,
        "epochs": epochs,
        "baseline": baseline,
        **_pairs(set_ or []),
    }
    resolved = parse_recipe(recipe, given)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def on_step(part: str, row: dict[str, Any]) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(part, total=row["total"], state="")
            state = f"loss {row['loss']:.3f} accuracy {row['accuracy']:.3f}"
            bars.update(tasks[part], completed=row["step"], state=state)

        try:
            report = run_workflow(resolved, out, resume=resume, overwrite=overwrite, on_step=on_step)
        except Interrupted as stop:
            console.print(f"{stop} Go on with the same command and --resume.")
            raise typer.Exit(130) from stop
    _print_headline(report)
    console.print(", ".join(str(out / name) for name in ARTEFACTS))


@app.command("trace")
def trace_command(
    model: Annotated[str, typer.Argument(help="file.py:factory, package.module:factory or model.pt2")] = Recipe().model,
    data: Annotated[str, typer.Option(help="gives the shape of the inputs")] = "digits",
    out: Annotated[Path | None, typer.Option(help="save the program here, e.g. model.sparsify")] = None,
) -> None:
    """Print the traced program, what each weight costs, and which can be sparse."""
    recipe = parse_recipe(None, {"model": model, "data": data})
    program = traced(recipe, recipe_data(recipe))
    typer.echo(program.text())
    table = Table("weight", "kind", "shape", "MACs", "uses", "sparse?")
    for site in program.maskable():
        shape = " x ".join(map(str, site.shape))
        table.add_row(site.name, site.kind, shape, f"{site.macs:,}", str(site.uses), site.skip or "yes")
    console.print(table)
    if out:
        program.save(out)


@app.command()
def opt(
    program: Annotated[Path, typer.Argument(help="a saved program")],
    pipeline: Annotated[str, typer.Argument(help='e.g. "insert-masks{density=0.1} | fold-masks"')],
    out: Annotated[Path | None, typer.Option(help="save the result here")] = None,
    show: Annotated[
        str, typer.Option(help="after: the result; each: after each pass; diff: a diff per pass; none")
    ] = "after",
    dump: Annotated[Path | None, typer.Option(help="folder for the text before and after each pass")] = None,
) -> None:
    """Apply passes to a saved program."""
    instruments = {"each": [print_after(typer.echo)], "diff": [print_diff(typer.echo)]}.get(show, [])
    if dump:
        instruments = [*instruments, dump_to(dump)]
    result, logs = Pipeline.parse(pipeline).run(Program.load(program), instruments)
    for log in logs:
        typer.echo(str(log), err=True)
    if show == "after":
        typer.echo(result.text())
    if out:
        result.save(out)


@app.command()
def export(
    program: Annotated[Path, typer.Argument(help="a saved program, of a run or of your own loop")],
    out: Annotated[Path, typer.Option(help="the ONNX file")] = Path("model.onnx"),
    data: Annotated[str, typer.Option(help="held-out inputs of it prove the file")] = "digits",
    opset: Annotated[int, typer.Option(help="18 to 23")] = 20,
    storage: Annotated[str, typer.Option(help="dense, or sparse initializers where smaller (disk only)")] = "dense",
    form: Annotated[
        str,
        typer.Option(
            help="of layers whose groups of outputs read few inputs: grouped, dense, auto (a cost model chooses), or auto:measure"
        ),
    ] = "auto",
    overwrite: Annotated[bool, typer.Option(help="replace the file")] = False,
) -> None:
    """Export a saved program to ONNX and prove the file in ONNX Runtime.

    Example: sparsify export runs/a/program.sparsify --data digits --out model.onnx --storage sparse
    """
    result = export_workflow(program, out, data=data, opset=opset, storage=storage, form=form, overwrite=overwrite)
    batches = " and ".join(map(str, result.parity.batches))
    console.print(
        f"{result.path}: {result.bytes:,} bytes, {result.nonzeros:,} of {result.positions:,} masked weights not zero; agrees with "
        f"the program to {result.parity.largest_error:.1e} of the outputs' range at batch {batches}."
    )
    for weight, choice in result.forms.items():
        console.print(f"  {weight}: {choice}", highlight=False)


@app.command()
def bench(
    files: Annotated[list[Path], typer.Argument(help="ONNX files; the first is what the others are compared with")],
    threads: Annotated[int, typer.Option(help="of ONNX Runtime")] = 1,
    batch: Annotated[int, typer.Option(help="first dimension, where the file leaves it open")] = 1,
    rounds: Annotated[int, typer.Option(help="each file is timed once a round")] = 50,
    shape: Annotated[list[str] | None, typer.Option(help="of an input with open dimensions: name=1x3x224x224")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Latency of ONNX files in ONNX Runtime, interleaved, with the noise of the machine.

    Example: sparsify bench runs/a/dense.onnx runs/a/model.onnx --threads 1 --batch 8
    """
    names = [str(path) for path in files]
    result = compare(
        {name: path for name, path in zip(names, files, strict=True)},
        shapes=_shapes(shape or []),
        batch=batch,
        threads=threads,
        rounds=rounds,
    )
    table = Table("file", "ms", "quartiles", "times as fast", "95 % interval", "", "bytes", "non-zeros")
    for index, row in enumerate(result.timings):
        table.add_row(
            row.name,
            f"{row.milliseconds:.3f}",
            f"{row.quartiles[0]:.3f} to {row.quartiles[1]:.3f}",
            f"{row.speedup:.2f}",
            f"{row.interval[0]:.2f} to {row.interval[1]:.2f}" if index else "",
            result.verdict(row) if index else "reference",
            f"{row.bytes:,}",
            f"{row.nonzeros:,}",
        )
    console.print(table)
    low, high = result.noise
    machine = result.machine
    console.print(
        f"The first file against itself: {low:.2f} to {high:.2f}. {machine['processor']}, {machine['cores']} cores, {threads} "
        f"thread(s), batch {batch}, {rounds} rounds, ONNX Runtime {machine['onnxruntime']}."
    )
    if json_:
        write_atomically(json_, (json.dumps(result.to_dict(), indent=1) + "\n").encode())


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="of a finished run")]) -> None:
    """Rebuild report.html from what a run left in its folder."""
    console.print(str(write_report(folder)))


@app.command()
def methods() -> None:
    """List the methods with their options."""
    table = Table("method", "what it does", "options (default)")
    for name, factory in METHODS.items():
        shown = [f"{k} ({'required' if v is inspect.Parameter.empty else _short(v)})" for k, v in options(name).items()]
        table.add_row(name, (inspect.getdoc(factory) or "").splitlines()[0], "\n".join(shown))
    console.print(table)


@app.command()
def passes() -> None:
    """List the passes with their options."""
    table = Table("pass", "what it does", "options (default): meaning")
    for name, cls in PASSES.items():
        shown = [f"{o.name} ({_short(o.default)}): {o.help}" for o in cls.options()]
        table.add_row(name, (inspect.getdoc(cls) or "").splitlines()[0], "\n".join(shown))
    console.print(table)


@app.command()
def patterns() -> None:
    """List the patterns."""
    table = Table("pattern", "which positions may be active together")
    for spelling, meaning in SPELLINGS.items():
        table.add_row(spelling, meaning)
    console.print(table)


def main() -> None:
    """Entry point: a mistake of the user's ends with its message and exit code 2, never a traceback."""
    try:
        app()
    except SparsifyError as error:
        print(f"sparsify: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"sparsify: cannot write or read {error.filename or 'a file'}: {error.strerror}.", file=sys.stderr)
        sys.exit(2)


def _pairs(items: list[str]) -> dict[str, Any]:
    """``key=value`` items; a key that is no recipe key but an option of methods goes there through ``method_options``."""
    known = {f.name for f in dataclasses.fields(Recipe)}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        key = key.replace("-", "_")
        if not equals:
            raise RecipeError(f"--set {item!r} should be key=value.")
        if key.startswith("method_options."):
            found.setdefault("method_options", {})[key.removeprefix("method_options.")] = _value(text)
        else:
            found[key] = tuple(text.split(",")) if key == "keep_dense" and key in known else _value(text)
    return found


def _shapes(items: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for item in items:
        name, equals, text = item.rpartition("=")
        sizes = text.split("x")
        if not equals or not all(size.isdigit() and int(size) > 0 for size in sizes):
            raise RecipeError(f"--shape {item!r} should be name=1x3x224x224, sizes from 1.")
        shapes[name] = tuple(map(int, sizes))
    return shapes


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


def _short(value: Any) -> str:
    return getattr(value, "__name__", None) or (str(value) if value not in ((), None) else "none")


def _print_headline(report: dict[str, Any]) -> None:
    shown = headline(report, report["latency"])
    table = Table("", *shown.columns)
    for label, cells in shown.rows:
        table.add_row(label, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
