"""The `sparsify` command: parse, call, print."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sparsify.errors import RecipeError, UnfinishedError
from sparsify.terminal import messages, options, run_options
from sparsify.terminal.console import console
from sparsify.terminal.epilogs import examples
from sparsify.terminal.evaluating import add_evaluate
from sparsify.terminal.lists import add_lists
from sparsify.terminal.recipe_commands import RecipeCommand, RunCommand
from sparsify.version import versions

if TYPE_CHECKING:
    from sparsify.training import Interrupted

app = typer.Typer(
    help="Train sparse, calibrated networks and export them as verified ONNX.",
    epilog=examples(
        "sparsify run --out runs/digits",
        "sparsify run model.py:build --data data.npz --sparsity 0.9 --baseline --out runs/a",
        "sparsify bench runs/a/dense.onnx runs/a/model.onnx",
        more="`sparsify COMMAND --help` shows the options of a command, with examples.",
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)


def _print_versions(wanted: bool) -> None:
    if wanted:
        typer.echo(" ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="print the versions and exit", is_eager=True, callback=_print_versions)
    ] = False,
) -> None:
    """Train sparse, calibrated networks and export them as verified ONNX."""


@app.command(
    cls=RunCommand,
    rich_help_panel="The job",
    epilog=examples(
        "sparsify run",
        "sparsify run model.py:build --data data.npz --sparsity 0.9 --baseline --out runs/a",
        "sparsify run model.py:build --data images/ --set train.lr=0.1 --set method.options.update_every=50 --out runs/b",
        "sparsify run --recipe runs/a/recipe.toml --set train.seed=1 --out runs/c",
    ),
)
def run(
    model: run_options.Model = None,
    data: run_options.Data = None,
    task: run_options.Task = None,
    loss: run_options.Loss = None,
    figures: run_options.Figures = None,
    target: run_options.Target = None,
    ood: run_options.Ood = None,
    dynamic: run_options.Dynamic = None,
    weights: run_options.Weights = None,
    trust_pickle: run_options.TrustPickle = None,
    method: run_options.Method = None,
    sparsity: run_options.Sparsity = None,
    pattern: run_options.Pattern = None,
    epochs: run_options.Epochs = None,
    baseline: run_options.Baseline = None,
    head: run_options.Head = None,
    export_form: run_options.ExportForm = None,
    export_selection: run_options.ExportSelection = None,
    export_precision: run_options.ExportPrecision = None,
    export_input: run_options.ExportInput = None,
    recipe: run_options.RecipeFile = None,
    set_: run_options.Settings = None,
    out: run_options.Out = Path("runs/digits"),
    resume: run_options.Resume = False,
    overwrite: run_options.Overwrite = False,
) -> None:
    """Trace, train sparsely, calibrate, export to ONNX and verify. Without a model, data or recipe it runs the embedded job.

    Writes model.onnx, report.html, metrics.json, latency.json, answers.json,
    recipe.toml and program.sparsify into the folder. The same recipe gives the
    same bits; --resume continues a run that was stopped or killed.
    """
    from sparsify.loading.once import read_once
    from sparsify.runs.inferring import with_task
    from sparsify.runs.pairs import parse_pairs
    from sparsify.runs.recipe import parse_recipe, with_embedded
    from sparsify.runs.workflow import run as run_workflow
    from sparsify.terminal import results
    from sparsify.terminal.progress import run_bars
    from sparsify.training import Interrupted

    given = {
        "model": model, "data": data, "task": task, "loss": loss, "figures": figures, "target": target, "ood": tuple(ood or ()) or None,
        "dynamic": tuple(dynamic or ()) or None, "weights": weights, "trust_pickle": trust_pickle, "method": method,
        "sparsity": sparsity, "pattern": pattern, "epochs": epochs, "baseline": baseline,
        "heads": tuple(head or ()) or None, "form": export_form,
        "selection": export_selection, "export_precision": export_precision, "export_input": export_input,
    }  # fmt: skip
    asked = parse_recipe(recipe, with_embedded(recipe, {**given, **parse_pairs(set_ or [])}))
    unfinished: UnfinishedError | None = None
    with read_once(), run_bars() as (on_step, on_decode):
        resolved = with_task(asked, on_decode)
        if resolved is not asked:
            console.print(f"task: {resolved.task}, the one that fits the data and the model", highlight=False)
        try:
            report = run_workflow(
                resolved, out, resume=resume, overwrite=overwrite, on_step=on_step, on_decode=on_decode
            )
        except Interrupted as stop:
            _interrupted(stop)
        except UnfinishedError as error:
            report, unfinished = error.report, error
    if report is not None:
        results.show_run(report, out)
    if unfinished is not None:
        raise unfinished


@app.command(
    "compare",
    cls=RecipeCommand,
    rich_help_panel="The job",
    epilog=examples(
        "sparsify compare recipes/compare_digits.toml --cores 4",
        "sparsify compare grid.toml --set train.epochs=5 --set grid.seeds=0,1 --out runs/quick",
        "sparsify compare grid.toml --out runs/quick --set train.epochs=5 --set grid.seeds=0,1 --resume",
    ),
)
def compare_command(
    recipe: options.GridFile,
    cores: options.Cores = None,
    set_: options.GridSettings = None,
    out: options.GridOut = Path("runs/compare"),
    resume: options.ResumeGrid = False,
    overwrite: options.OverwriteGrid = False,
) -> None:
    """Run a grid of methods, sparsities and seeds in parallel, and rank each method against its base.

    Writes compare.html, compare.md, compare.json and grid.toml into the folder, and one run folder per cell. The grid always includes the
    dense baseline and the method that a wrapper wraps. Exit code 2 if a cell failed because of a mistake in the request, 1 for any other
    failure.
    """
    from sparsify.runs.comparison import run_grid
    from sparsify.runs.grid import parse_grid
    from sparsify.terminal import results
    from sparsify.terminal.progress import grid_bars
    from sparsify.training import Interrupted

    grid = parse_grid(recipe, set_ or [])
    with grid_bars(len(grid.cells())) as (on_event, on_decode):
        try:
            found = run_grid(
                grid, out, cores=cores, resume=resume, overwrite=overwrite, on_event=on_event, on_decode=on_decode
            )
        except Interrupted as stop:
            _interrupted(stop)
    results.show_grid(found, out)
    if found.failures:
        raise typer.Exit(1 if any(failure.defect for failure in found.failures) else 2)


@app.command(
    "trace",
    rich_help_panel="Programs",
    epilog=examples(
        "sparsify trace",
        "sparsify trace model.py:build --data data.npz --out model.sparsify",
        "sparsify trace bert.py:build --input input_ids=2x16:int64 --input attention_mask=2x16:int64",
        "sparsify trace text.py:build --input ids=2x16:int64 --dynamic ids:1=T --dynamic T=1..512",
    ),
)
def trace_command(
    model: options.TracedModel = options.DEFAULTS["model"],
    data: options.ShapeData = "digits",
    target: options.TracedTarget = None,
    inputs: options.Inputs = None,
    weights: options.WeightsFile = None,
    trust_pickle: options.TrustPickle = False,
    task: options.TracedTask = None,
    logits: options.Logits = None,
    dynamic: options.Dynamic = None,
    pattern: options.TracedPattern = None,
    sparsity: options.TracedSparsity = 0.9,
    out: options.TracedOut = None,
) -> None:
    """Print the traced program, what each weight costs, and which can be sparse."""
    from sparsify.runs.tracing import forms_in_training, traced_on_data, traced_without_data
    from sparsify.terminal import results

    named: Any = {
        "weights": weights, "trust_pickle": trust_pickle, "logits": logits, "dynamic": dynamic or (), "task": task
    }  # fmt: skip
    if inputs:
        program = traced_without_data(model, inputs, **named)
    else:
        program = traced_on_data(model, data, target=target, **named)
    results.show_program(program, forms_in_training(program, pattern, sparsity) if pattern is not None else {})
    if out:
        program.save(out)


@app.command(
    rich_help_panel="Programs",
    epilog=examples(
        'sparsify opt model.sparsify "insert-masks{density=0.1} | fold-masks" --out sparse.sparsify',
        'sparsify opt model.sparsify "insert-masks{pattern=nm:2:4 density=0.5}" --show diff',
        more="`sparsify passes` lists the passes with their options.",
    ),
)
def opt(
    program: options.SavedProgram,
    pipeline: options.Passes,
    out: options.ResultOut = None,
    show: options.Show = "after",
    dump: options.Dump = None,
) -> None:
    """Apply passes to a saved program."""
    from sparsify.ir import Program
    from sparsify.passes import Pipeline, dump_to, print_after, print_diff

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


@app.command(
    rich_help_panel="The job",
    epilog=examples(
        "sparsify export runs/a/program.sparsify --data digits --out model.onnx",
        "sparsify export mine.sparsify --data data.npz --opset 18 --storage sparse --out small.onnx --overwrite",
        "sparsify export runs/a/program.sparsify --recipe runs/a/recipe.toml --precision int8 --batch 64 --out int8.onnx",
        "sparsify export runs/spiking/program.sparsify --data digits --steps single --out step.onnx",
    ),
)
def export(
    program: options.FinishedProgram,
    out: options.OnnxOut = Path("model.onnx"),
    data: options.ProofData = None,
    recipe: options.RunRecipe = None,
    task: options.ExportTask = None,
    image_size: options.ImageSize = None,
    opset: options.Opset = 20,
    storage: options.Storage = "dense",
    form: options.Form = "auto",
    selection: options.Selection = "by-batch",
    precision: options.Precision = "fp32",
    batch: options.CallBatch = 1,
    threads: options.TrialThreads = 1,
    input_type: options.InputType = "float",
    steps: options.Steps = "whole",
    overwrite: options.OverwriteFile = False,
) -> None:
    """Export a saved program to ONNX and prove the file in ONNX Runtime: same outputs at two batch sizes, exactly the zeros of the masks.

    A file that disagrees is not written. An int8 file is compared by its
    predictions, and measured on the test samples.
    """
    from sparsify.runs.exporting import export_saved
    from sparsify.terminal import results

    result, measured = export_saved(
        program, out, data=data, recipe=recipe, task=task, image_size=image_size, opset=opset, storage=storage, form=form,
        selection=selection, precision=precision, batch=batch, threads=threads, input_type=input_type, overwrite=overwrite,
        steps=steps,
    )  # fmt: skip
    results.show_export(result, measured)


@app.command(
    rich_help_panel="The job",
    epilog=examples(
        "sparsify bench runs/a/dense.onnx runs/a/model.onnx",
        "sparsify bench dense.onnx sparse.onnx int8.onnx --threads 4 --batch 8 --rounds 100 --json out.json",
        "sparsify bench model.onnx --shape image=1x3x224x224",
    ),
)
def bench(
    files: options.Files,
    threads: options.Threads = 1,
    batch: options.OpenBatch = None,
    rounds: options.Rounds = 50,
    shape: options.Shapes = None,
    json_: options.Json = None,
) -> None:
    """Time ONNX files in ONNX Runtime, each against the first, and show the noise of the machine.

    The files are timed in turns; a ratio is the median over rounds, with its
    95 % interval. The first file is also timed against itself, which shows
    the noise: a ratio within it is no evidence of a difference.
    """
    from sparsify.files import write_json
    from sparsify.reports import compare, parse_shapes
    from sparsify.terminal import tables

    names = [str(path) for path in files]
    if len(set(names)) < len(names):
        raise RecipeError("a file is given twice. Each is timed once; the first is compared with itself anyway.")
    result = compare(
        dict(zip(names, files, strict=True)),
        shapes=parse_shapes(shape or []),
        batch=batch,
        threads=threads,
        rounds=rounds,
    )
    console.print(tables.figures("file", result.table()))
    console.print(result.conditions())
    if json_:
        write_json(json_, result.to_dict())


@app.command(rich_help_panel="The job", epilog=examples("sparsify report runs/a"))
def report(folder: options.Finished) -> None:
    """Rebuild report.html, or the tables of a grid, only from the files in its folder."""
    from sparsify.reports import write_report
    from sparsify.runs.comparison import COMPARISON, RECORD, write_comparison

    if (folder / RECORD).exists():
        write_comparison(folder)
        console.print(f"in {folder}: {', '.join(COMPARISON)}", soft_wrap=True)
    else:
        console.print(str(write_report(folder)), soft_wrap=True)


add_evaluate(app)
add_lists(app)


def _interrupted(stop: Interrupted) -> NoReturn:
    console.print(f"{stop} Go on with the same command and --resume.")
    raise typer.Exit(130) from stop


def main() -> None:
    """Entry point: a mistake of the user's ends with one message and exit code 2, never a traceback; a defect says that it is one."""
    warnings.showwarning = messages.notes()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path need not be text
    try:
        app()
    except Exception as error:
        messages.ended(error)


if __name__ == "__main__":
    main()
