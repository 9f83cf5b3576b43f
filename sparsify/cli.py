"""The `sparsify` command: parse, call, print. One file because its length is the options of its commands and their help."""

from __future__ import annotations

import io
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperCommand

from sparsify.errors import RecipeError, SparsifyError, SparsifyWarning, UnfinishedError
from sparsify.terminal.epilogs import as_setting, examples, other_keys
from sparsify.version import versions

if TYPE_CHECKING:
    from sparsify.training import Interrupted

DEFAULTS = {
    "task": "classification",
    "model": "sparsify.loading:digits_cnn",
    "data": "digits",
    "method": "gmp",
    "sparsity": "0.9",
    "pattern": "unstructured",
    "epochs": "20",
    "form": "auto",
    "selection": "by-batch",
    "export_precision": "fp32",
    "export_input": "float",
}
"""The defaults of recipe keys that help texts show. They are copies, because `sparsify.runs.recipe` loads torch; a test compares them."""
WITH_OPTION = (
    "model",
    "data",
    "task",
    "loss",
    "figures",
    "ood",
    "weights",
    "trust_pickle",
    "method",
    "sparsity",
    "pattern",
    "epochs",
    "baseline",
    "export_precision",
    "export_input",
)
"""Recipe keys that have an option of their own."""
_show = warnings.showwarning
LONGEST_MESSAGE = 3500
"""Characters of an error that are printed; one may quote what was typed, or a whole file."""
FORM = "of layers whose groups of outputs read few inputs: grouped, dense, auto (a cost model chooses), or auto:measure"
INPUT = "what the file takes: float, or uint8: images as bytes [N, H, W, C], normalised inside the file"
SELECTION = "of their inputs: by-batch (own operators for one sample, behind an If), or gather, for runtimes without If"
WHAT, SPARSE, TRAINING, FOLDER, MEASURE = (
    "What to train",
    "Sparsity",
    "Training",
    "The folder of the run",
    "Measurement",
)


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


console = Console(markup=False, emoji=False)  # what is printed is data: a path may hold [/x], a pattern :O:


class RecipeCommand(TyperCommand):
    """A command of recipe keys; an option that is one, or a method's, is answered with what to write."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", "")
            known = {spelt for parameter in self.params for spelt in parameter.opts}
            advice = None if not name or name in known else as_setting(name, given)
            if advice is None:
                raise
            raise RecipeError(f"sparsify {ctx.info_name} has no option {name}. Write {advice}.") from error


class RunCommand(RecipeCommand):
    """`run`; its help lists the recipe keys without an option, which are looked up only when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = self.epilog
        self.epilog = f"{shown}\n\n{other_keys(*WITH_OPTION)}"
        super().format_help(ctx, formatter)
        self.epilog = shown


TASK = "what the outputs mean, as for `sparsify run`; the saved program keeps it"
DYNAMIC = "a dimension that varies beside the batch, as ids:1=T, or its sizes, as T=1..512; repeatable"


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
    model: Annotated[
        str | None,
        typer.Argument(
            help="file.py:factory, package.module:factory, model.pt2, or a saved program to train on",
            show_default="a small CNN",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, file.npz, file.csv, a folder of images, or file.py:factory",
            show_default=DEFAULTS["data"],
            rich_help_panel=WHAT,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="what the outputs mean: classification, binary, multilabel, regression, dense, sequence, custom, or auto, the one "
            "that fits data and model",
            show_default=DEFAULTS["task"],
            rich_help_panel=WHAT,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="of regression mse, mae or huber; of custom file.py:function", rich_help_panel=WHAT),
    ] = None,
    figures: Annotated[
        str | None, typer.Option(help="of custom: file.py:function that returns numbers by name", rich_help_panel=WHAT)
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="of file.csv: the column to predict; several with commas between them", rich_help_panel=WHAT),
    ] = None,
    ood: Annotated[
        list[str] | None,
        typer.Option(help="inputs of no class, to be told from the test part; repeatable", rich_help_panel=WHAT),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(help=DYNAMIC, rich_help_panel=WHAT),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="safetensors or a state dict to start from", show_default="the model's own", rich_help_panel=WHAT
        ),
    ] = None,
    trust_pickle: Annotated[
        bool | None,
        typer.Option(help="let files of model and weights run the code they may contain", rich_help_panel=WHAT),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="see `sparsify methods`, or file.py:function", show_default=DEFAULTS["method"], rich_help_panel=SPARSE
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="inactive fraction, above 0 and below 1", show_default=DEFAULTS["sparsity"], rich_help_panel=SPARSE
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="see `sparsify patterns`", show_default=DEFAULTS["pattern"], rich_help_panel=SPARSE),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="passes over the training data", show_default=DEFAULTS["epochs"], rich_help_panel=TRAINING),
    ] = None,
    baseline: Annotated[
        bool | None,
        typer.Option(
            help="train the dense model too, same budget, and compare",
            show_default="no-baseline",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    export_form: Annotated[
        str | None, typer.Option(help=FORM, show_default=DEFAULTS["form"], rich_help_panel=FOLDER)
    ] = None,
    export_selection: Annotated[
        str | None, typer.Option(help=SELECTION, show_default=DEFAULTS["selection"], rich_help_panel=FOLDER)
    ] = None,
    export_precision: Annotated[
        str | None,
        typer.Option(
            help="int8 also writes model-int8.onnx, the fastest of its int8 and fp32 forms on this machine",
            show_default=DEFAULTS["export_precision"],
            rich_help_panel=FOLDER,
        ),
    ] = None,
    export_input: Annotated[
        str | None, typer.Option(help=INPUT, show_default=DEFAULTS["export_input"], rich_help_panel=FOLDER)
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="TOML file of keys; options given here override them", rich_help_panel=TRAINING),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="any other recipe key, as key=value; repeatable", rich_help_panel=TRAINING),
    ] = None,
    out: Annotated[Path, typer.Option(help="where everything is written", rich_help_panel=FOLDER)] = Path(
        "runs/digits"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the last checkpoint, to the same bits", rich_help_panel=FOLDER)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an earlier run in the folder", rich_help_panel=FOLDER)
    ] = False,
) -> None:
    """Trace, train sparsely, calibrate, export to ONNX and verify. Without a model, data or a recipe: the embedded job.

    Leaves model.onnx, report.html, metrics.json, latency.json, recipe.toml
    and program.sparsify in the folder. The same recipe gives the same bits;
    a run that was stopped or killed goes on with --resume.
    """
    from sparsify.reports import headline, verdict
    from sparsify.runs.inferring import with_task
    from sparsify.runs.recipe import parse_pairs, parse_recipe, with_embedded
    from sparsify.runs.workflow import ARTEFACTS
    from sparsify.runs.workflow import run as run_workflow
    from sparsify.terminal import tables
    from sparsify.terminal.progress import run_bars
    from sparsify.training import Interrupted

    given = {"model": model, "data": data, "method": method, "sparsity": sparsity, "pattern": pattern}
    given |= {"task": task, "loss": loss, "figures": figures}
    given |= {
        "target": target,
        "weights": weights,
        "trust_pickle": trust_pickle,
        "epochs": epochs,
        "baseline": baseline,
        "ood": tuple(ood) if ood else None,
        "dynamic": tuple(dynamic) if dynamic else None,
        "form": export_form,
        "selection": export_selection,
        "export_precision": export_precision,
        "export_input": export_input,
        **parse_pairs(set_ or []),
    }
    asked = parse_recipe(recipe, with_embedded(recipe, given))
    resolved = with_task(asked)
    if resolved is not asked:
        console.print(f"task: {resolved.task}, the one that fits the data and the model", highlight=False)
    unfinished: UnfinishedError | None = None
    with run_bars() as (on_step, on_decode):
        try:
            report = run_workflow(
                resolved, out, resume=resume, overwrite=overwrite, on_step=on_step, on_decode=on_decode
            )
        except Interrupted as stop:
            _interrupted(stop)
        except UnfinishedError as error:
            report, unfinished = error.report, error
    if report is not None:
        for line in verdict(report, report["latency"]):
            console.print(line, highlight=False, markup=False)
        console.print(tables.figures("", headline(report, report["latency"])))
        files = [*ARTEFACTS, *sorted(path.name for path in out.glob("*-int8.onnx"))]
        console.print(f"in {out}: {', '.join(name for name in files if (out / name).exists())}", soft_wrap=True)
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
    recipe: Annotated[
        Path, typer.Argument(help="TOML file of recipe keys, with a [grid] of methods, sparsities and seeds")
    ],
    cores: Annotated[
        int | None,
        typer.Option(help="cores to keep busy; a cell takes its threads (1 unless given)", show_default="all", min=1),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="any recipe key, as key=value, or a list, as grid.seeds=0,1; repeatable"),
    ] = None,
    out: Annotated[Path, typer.Option(help="where everything is written", rich_help_panel=FOLDER)] = Path(
        "runs/compare"
    ),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="keep finished cells, go on with the others, to the same bits", rich_help_panel=FOLDER
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an earlier grid in the folder", rich_help_panel=FOLDER)
    ] = False,
) -> None:
    """Run a grid of methods, sparsities and seeds in parallel, and rank each method against its base.

    Leaves compare.html, compare.md, compare.json and grid.toml in the folder, and a run's folder for every cell. The dense baseline and
    what a wrapper wraps are always in the grid. Exit code 2 if a cell failed by a mistake in what was asked for, 1 if by anything else.
    """
    from sparsify.runs.comparison import COMPARISON, run_grid
    from sparsify.runs.grid import parse_grid
    from sparsify.terminal import tables
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
    console.print(tables.comparison(found.summary))
    trust = found.summary.sentences()[0]
    console.print(f"Mean ± standard deviation over seeds; below, the difference to the base. {trust}", highlight=False)
    console.print(f"in {out}: {', '.join(COMPARISON)}", soft_wrap=True)
    for failure in found.failures:
        print(f"sparsify: {failure.cell} failed: {failure.error}", file=sys.stderr)
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
    model: Annotated[str, typer.Argument(help="file.py:factory, package.module:factory or model.pt2")] = DEFAULTS[
        "model"
    ],
    data: Annotated[str, typer.Option(help="gives the shape of the inputs")] = "digits",
    target: Annotated[str | None, typer.Option(help="of file.csv: the column to predict; several with commas")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="instead of data: 2x3x32x32 or ids=2x16:int64, batch first; repeatable"),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors or a state dict")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="let files of model and weights run the code they may contain")
    ] = False,
    task: Annotated[
        str | None, typer.Option(help=TASK, show_default=f"{DEFAULTS['task']}; of --input, what the outputs show")
    ] = None,
    logits: Annotated[
        str | None,
        typer.Option(help="position (from 0) or key of the output that the task reads, such as class scores"),
    ] = None,
    dynamic: Annotated[list[str] | None, typer.Option(help=DYNAMIC)] = None,
    out: Annotated[Path | None, typer.Option(help="save the program here, e.g. model.sparsify")] = None,
) -> None:
    """Print the traced program, what each weight costs, and which can be sparse."""
    from sparsify.runs.artefacts import recipe_data
    from sparsify.runs.inferring import with_task
    from sparsify.runs.preflight import traced, traced_without_data
    from sparsify.runs.recipe import parse_recipe
    from sparsify.terminal import tables

    if inputs:
        program = traced_without_data(
            model, inputs, weights=weights, trust_pickle=trust_pickle, logits=logits, dynamic=dynamic or (), task=task
        )
    elif task == "custom":
        raise RecipeError(
            "a custom task is traced without its loss: give the shapes of the inputs by --input, in place of --data."
        )
    else:
        given: dict[str, Any] = {
            "model": model,
            "data": data,
            "weights": weights and str(weights),
            "trust_pickle": trust_pickle,
            "task": task,
        }
        if target:  # rows of a table are kept for testing; which ones does not matter here
            given |= {"target": target, "test_holdout": 0.15}
        if dynamic:
            given["dynamic"] = tuple(dynamic)
        if logits is not None:
            given["logits"] = int(logits) if logits.isdigit() else logits
        recipe = with_task(parse_recipe(None, given))
        program = traced(recipe, recipe_data(recipe))
    typer.echo(program.text())
    console.print(tables.weights(program), crop=False, soft_wrap=True)
    console.print(tables.whole(program), highlight=False, soft_wrap=True)
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
    program: Annotated[Path, typer.Argument(help="a saved program")],
    pipeline: Annotated[str, typer.Argument(help='e.g. "insert-masks{density=0.1} | fold-masks"')],
    out: Annotated[Path | None, typer.Option(help="save the result here")] = None,
    show: Annotated[
        str, typer.Option(help="after: the result; each: after each pass; diff: a diff per pass; none")
    ] = "after",
    dump: Annotated[Path | None, typer.Option(help="folder for the text before and after each pass")] = None,
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
    ),
)
def export(
    program: Annotated[Path, typer.Argument(help="a saved program, of a run or of your own loop")],
    out: Annotated[Path, typer.Option(help="the ONNX file")] = Path("model.onnx"),
    data: Annotated[
        str | None, typer.Option(help="its test inputs prove the file; as for `sparsify run`", show_default="digits")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="of the run, in place of --data: its data, split as they were there")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="what the outputs mean", show_default="what the program's file says, or the one that fits"),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="side in pixels, for a folder of images", min=1, max=8192)
    ] = None,
    opset: Annotated[int, typer.Option(help="18 to 23")] = 20,
    storage: Annotated[
        str, typer.Option(help="dense; or sparse: only non-zeros, where that is smaller (disk, not speed)")
    ] = "dense",
    form: Annotated[str, typer.Option(help=FORM)] = "auto",
    selection: Annotated[str, typer.Option(help=SELECTION)] = "by-batch",
    precision: Annotated[
        str, typer.Option(help="fp32; or int8: the fastest of the int8 and fp32 forms on this machine that agrees")
    ] = "fp32",
    batch: Annotated[
        int,
        typer.Option(
            help="samples most calls will have: trials run so many; above 1 no If is written", min=1, max=2**16
        ),
    ] = 1,
    threads: Annotated[int, typer.Option(help="of trials, those of int8 and auto:measure", min=1, max=512)] = 1,
    input_type: Annotated[str, typer.Option("--input", "--export-input", help=INPUT)] = "float",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
) -> None:
    """Export a saved program to ONNX and prove the file in ONNX Runtime: same outputs at two batch sizes, exactly the zeros of the masks.

    A file that disagrees is not written. An int8 file is compared by its
    predictions, and measured on the test samples.
    """
    from sparsify.reports import int8_sentence
    from sparsify.runs.exporting import export_saved
    from sparsify.terminal import tables

    result, measured = export_saved(
        program, out, data=data, recipe=recipe, task=task, image_size=image_size, opset=opset, storage=storage, form=form,
        selection=selection, precision=precision, batch=batch, threads=threads, input_type=input_type, overwrite=overwrite,
    )  # fmt: skip
    batches = " and ".join(map(str, result.parity.batches))
    console.print(
        f"{result.path}: {result.bytes:,} bytes, {result.nonzeros:,} of {result.positions:,} masked weights not zero, "
        f"{100 * result.model_density:.1f} % of all the model's weights; agrees with "
        f"the program to {result.parity.largest_error:.1e}, relative to each of {result.parity.units:,} outputs per sample, at batch "
        f"{batches}."
    )
    if not result.batch_range.everything:
        console.print(f"  takes batches of {result.batch_range} only, as forward does", highlight=False, markup=False)
    for text in result.parity.uncompared:
        console.print(f"  not compared: {text}", highlight=False, markup=False)
    for weight, choice in result.forms.items():
        console.print(f"  {weight}: {choice}", highlight=False)
    if result.int8 and measured:
        console.print(tables.int8(result.int8, measured))
        console.print(int8_sentence(measured), highlight=False)


@app.command(
    rich_help_panel="The job",
    epilog=examples(
        "sparsify bench runs/a/dense.onnx runs/a/model.onnx",
        "sparsify bench dense.onnx sparse.onnx int8.onnx --threads 4 --batch 8 --rounds 100 --json out.json",
        "sparsify bench model.onnx --shape image=1x3x224x224",
    ),
)
def bench(
    files: Annotated[list[Path], typer.Argument(help="ONNX files; the first is what the others are compared with")],
    threads: Annotated[int, typer.Option(help="of ONNX Runtime", rich_help_panel=MEASURE)] = 1,
    batch: Annotated[
        int | None,
        typer.Option(help="first dimension, where the file leaves it open", show_default="1", rich_help_panel=MEASURE),
    ] = None,
    rounds: Annotated[int, typer.Option(help="each file is timed once a round", rich_help_panel=MEASURE)] = 50,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="of an input with other open dimensions: name=1x3x224x224; repeatable", rich_help_panel=MEASURE
        ),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the figures and the machine here")] = None,
) -> None:
    """Latency of ONNX files in ONNX Runtime, each against the first, with the noise of the machine.

    The files take turns; a ratio is the median over rounds, with its 95 %
    interval. The first file is also timed against itself: a difference is
    called one only where it exceeds what that shows.
    """
    from sparsify.files import write_atomically
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
        write_atomically(json_, (json.dumps(result.to_dict(), indent=1) + "\n").encode())


@app.command(rich_help_panel="The job", epilog=examples("sparsify report runs/a"))
def report(folder: Annotated[Path, typer.Argument(help="of a finished run, or of a grid")]) -> None:
    """Rebuild report.html, or the table of a grid, from what is in its folder, and from nothing else."""
    from sparsify.reports import write_report
    from sparsify.runs.comparison import COMPARISON, RECORD, write_comparison

    if (folder / RECORD).exists():
        write_comparison(folder)
        console.print(f"in {folder}: {', '.join(COMPARISON)}", soft_wrap=True)
    else:
        console.print(str(write_report(folder)), soft_wrap=True)


@app.command(rich_help_panel="Lists")
def methods() -> None:
    """List the methods with their options, and the wrappers to be written around one: cigl(agent(rigl)).

    Your own are written file.py:function: cigl(my.py:mest).
    """
    from sparsify.terminal import tables

    console.print(tables.methods())


@app.command(rich_help_panel="Lists")
def passes() -> None:
    """List the passes with their options."""
    from sparsify.terminal import tables

    console.print(tables.passes())


@app.command(rich_help_panel="Lists")
def heads() -> None:
    """List the calibration heads, the tasks they fit and the outputs they add."""
    from sparsify.terminal import tables

    console.print(tables.heads())


@app.command(rich_help_panel="Lists")
def patterns() -> None:
    """List the patterns."""
    from sparsify.terminal import tables

    console.print(tables.patterns())


def _interrupted(stop: Interrupted) -> NoReturn:
    console.print(f"{stop} Go on with the same command and --resume.")
    raise typer.Exit(130) from stop


def main() -> None:
    """Entry point: a mistake of the user's ends with one message and exit code 2, never a traceback; a defect says that it is one."""
    warnings.showwarning = _notes()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path need not be text
    try:
        app()
    except SparsifyError as error:
        _end(str(error))
    except OSError as error:
        name = error.filename if error.filename is not None else "a file"
        _end(f"cannot write or read {name}: {error.strerror or error}.")
    except MemoryError as error:
        _end(
            f"there is not enough memory for this ({error or 'an allocation failed'}). Lower the batch, the size of images, or workers."
        )
    except Exception as error:
        traceback.print_exc()
        print(
            f"sparsify: {type(error).__name__}: {error}\nThis is a defect of sparsify, not a mistake of yours. Report it with the lines "
            f"above and the command.",
            file=sys.stderr,
        )
        sys.exit(1)


def _notes() -> Callable[..., None]:
    """Print what sparsify says without stopping as notes, each once; warnings of others are shown as Python shows them."""
    said: set[str] = set()

    def note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, SparsifyWarning):
            _show(message, category, *where, **more)
        elif str(message) not in said:
            said.add(str(message))
            print(f"sparsify: note: {message}", file=sys.stderr)

    return note


def _end(message: str) -> NoReturn:
    shown = message if len(message) <= LONGEST_MESSAGE else f"{message[: LONGEST_MESSAGE - 600]} ... {message[-500:]}"
    print(f"sparsify: {shown}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
