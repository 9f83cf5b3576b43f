"""`sparsify evaluate`: its options, and what it prints. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from typer import Argument, Option

from sparsify.errors import EvaluationError
from sparsify.terminal.console import console
from sparsify.terminal.epilogs import examples

OUTPUTS, INPUTS = "Files of other tools: outputs", "Files of other tools: inputs"

Model = Annotated[Path, Argument(help="the ONNX file")]
Data = Annotated[
    str,
    Option(
        help="digits, file.npz with x_test and y_test or encoded images, or a folder of images, as for `sparsify run`"
    ),
]
Ood = Annotated[
    list[str] | None,
    Option(help="out-of-distribution inputs to tell apart: file.npz, photos or digits; repeatable"),
]
Against = Annotated[Path | None, Option(help="a second ONNX file, to be compared on the same samples")]
Part = Annotated[str, Option(help="part of the data: test, validation or train")]
Shift = Annotated[
    bool,
    Option(
        "--shift",
        help="measure images under noise, blur and brightness too, each at five severities; takes 15 more passes over the data",
    ),
]
ImageSize = Annotated[int | None, Option(help="side in pixels to which encoded images are resized", min=1, max=8192)]
Threads = Annotated[int, Option(help="threads of ONNX Runtime; 0: one per core", min=0, max=512)]
Out = Annotated[Path | None, Option(help="folder for metrics.json and evaluation.html")]
Overwrite = Annotated[bool, Option("--overwrite", help="replace an earlier evaluation in the folder")]
Logits = Annotated[
    str | None,
    Option(
        help="name of the output with scores of the classes, [N, K]", show_default="logits", rich_help_panel=OUTPUTS
    ),
]
Probabilities = Annotated[
    str | None,
    Option(help="name of the output with probabilities, [N, K]", show_default="probabilities", rich_help_panel=OUTPUTS),
]
Prediction = Annotated[
    str | None,
    Option(
        help="name of the output with predicted numbers, of a regression",
        show_default="prediction",
        rich_help_panel=OUTPUTS,
    ),
]
OodScore = Annotated[
    str | None,
    Option(
        help="name of the output with a score per sample, [N], higher for inputs like those of training",
        show_default="ood_score",
        rich_help_panel=OUTPUTS,
    ),
]
LowerIsInside = Annotated[
    bool,
    Option(
        "--lower-is-inside",
        help="that score is lower for inputs like those of training, as uncertainties are",
        rich_help_panel=OUTPUTS,
    ),
]
Mean = Annotated[
    str | None,
    Option(
        help="subtracted after --scale: a number per channel, with commas, or one for all",
        show_default="what the file says, or 0",
        rich_help_panel=INPUTS,
    ),
]
Std = Annotated[
    str | None,
    Option(
        help="divided by last: a number per channel, with commas, or one for all",
        show_default="what the file says, or 1",
        rich_help_panel=INPUTS,
    ),
]
Scale = Annotated[
    float | None,
    Option(
        help="what stored values are divided by first, 255 for bytes",
        show_default="what the file says, or 1",
        rich_help_panel=INPUTS,
    ),
]
Layout = Annotated[
    str | None, Option(help="NCHW or NHWC, for images", show_default="what fits the input", rich_help_panel=INPUTS)
]


def add_evaluate(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "evaluate",
        rich_help_panel="The job",
        epilog=examples(
            "sparsify evaluate runs/a/model.onnx --data data.npz --ood others.npz --out runs/a-test",
            "sparsify evaluate runs/a/model.onnx --against runs/a/dense.onnx --data data.npz",
            "sparsify evaluate other.onnx --data data.npz --logits output --scale 255 --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26",
        ),
    )(evaluate)


def evaluate(
    model: Model,
    data: Data,
    ood: Ood = None,
    against: Against = None,
    part: Part = "test",
    shift: Shift = False,
    image_size: ImageSize = None,
    threads: Threads = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    logits: Logits = None,
    probabilities: Probabilities = None,
    prediction: Prediction = None,
    ood_score: OodScore = None,
    lower_is_inside: LowerIsInside = False,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    layout: Layout = None,
) -> None:
    """Measure an ONNX file on data: accuracy, calibration, selective prediction, out-of-distribution inputs, prediction sets, intervals.

    Runs the file in ONNX Runtime and needs no torch. Figures have 95 %
    intervals; with --against, a figure is called better or worse only if the
    interval of the paired difference leaves out 0.
    """
    from sparsify.evaluation import OutputNames, Preparation, shown, write_evaluation
    from sparsify.evaluation import evaluate as measured
    from sparsify.evaluation.folder import check_folder
    from sparsify.pages import shifts

    if out is not None:
        check_folder(out, overwrite=overwrite)
    names = OutputNames(
        logits=logits,
        probabilities=probabilities,
        prediction=prediction,
        ood_score=ood_score,
        lower_is_inside=lower_is_inside,
    )
    report = measured(
        model, data, ood=ood or [], against=against, names=names,
        preparation=Preparation(_numbers("mean", mean), _numbers("std", std), scale, layout),
        part=part, shift=shift, image_size=image_size, threads=threads,
    )  # fmt: skip
    for line in shown.verdicts(report):
        console.print(line, highlight=False, markup=False)
    console.print(_table(("", *shown.titles(report).values()), shown.figures(report, short=True)))
    if under := shown.shifted(report):
        console.print(_table(shifts.short_columns(shown.titles(report)), shifts.short_rows(under)))
    if "differences" in report:
        console.print(_table(("difference", "", "95 % interval", "verdict"), shown.differences(report)))
    console.print("In brackets: 95 % intervals over draws of the samples, for one trained model.", highlight=False)
    if out is not None:
        write_evaluation(report, out, overwrite=overwrite)
        console.print(f"in {out}: metrics.json, evaluation.html", soft_wrap=True)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise EvaluationError(
            f"--{option} should hold numbers with commas, as 0.49,0.48,0.45; found {text!r}."
        ) from error


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
