"""The options of `sparsify run`: recipe keys that have an option of their own, and the folder of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sparsify.terminal.options import DEFAULTS, DYNAMIC, FOLDER, FORM, INPUT, SELECTION

WITH_OPTION = (
    "model", "data", "task", "loss", "figures", "ood", "weights", "trust_pickle", "method", "sparsity", "pattern", "epochs", "baseline",
    "heads", "export_precision", "export_input",
)  # fmt: skip
"""Recipe keys that have an option of their own."""
WHAT, SPARSE, TRAINING = "What to train", "Sparsity", "Training"

Model = Annotated[
    str | None,
    Argument(
        help="file.py:factory, package.module:factory, model.pt2, or a saved program to train on",
        show_default="a small CNN",
    ),
]
Data = Annotated[
    str | None,
    Option(
        help="digits, file.npz, file.csv, a folder of images, or file.py:factory",
        show_default=DEFAULTS["data"],
        rich_help_panel=WHAT,
    ),
]
Task = Annotated[
    str | None,
    Option(
        help="what the outputs mean: classification, binary, multilabel, regression, dense, sequence, custom, or auto (the only "
        "one that fits data and model)",
        show_default=DEFAULTS["task"],
        rich_help_panel=WHAT,
    ),
]
Loss = Annotated[
    str | None,
    Option(help="loss: mse, mae or huber for a regression; file.py:function for a custom task", rich_help_panel=WHAT),
]
Figures = Annotated[
    str | None,
    Option(help="figures of a custom task: file.py:function that returns numbers by name", rich_help_panel=WHAT),
]
Target = Annotated[
    str | None,
    Option(help="column of file.csv to predict; separate several with commas", rich_help_panel=WHAT),
]
Ood = Annotated[
    list[str] | None,
    Option(help="out-of-distribution inputs, to be told apart from the test part; repeatable", rich_help_panel=WHAT),
]
Dynamic = Annotated[list[str] | None, Option(help=DYNAMIC, rich_help_panel=WHAT)]
Weights = Annotated[
    str | None,
    Option(help="initial weights: safetensors or a state dict", show_default="the model's own", rich_help_panel=WHAT),
]
TrustPickle = Annotated[
    bool | None,
    Option(help="let files of model and weights run the code they may contain", rich_help_panel=WHAT),
]
Method = Annotated[
    str | None,
    Option(
        help="a method that `sparsify methods` lists, or file.py:function",
        show_default=DEFAULTS["method"],
        rich_help_panel=SPARSE,
    ),
]
Sparsity = Annotated[
    float | None,
    Option(
        help="inactive fraction of the weights, above 0 and below 1",
        show_default=DEFAULTS["sparsity"],
        rich_help_panel=SPARSE,
    ),
]
Pattern = Annotated[
    str | None,
    Option(help="a pattern that `sparsify patterns` lists", show_default=DEFAULTS["pattern"], rich_help_panel=SPARSE),
]
Epochs = Annotated[
    int | None,
    Option(help="passes over the training data", show_default=DEFAULTS["epochs"], rich_help_panel=TRAINING),
]
Baseline = Annotated[
    bool | None,
    Option(
        help="also train the dense model for as many epochs, and compare",
        show_default="no-baseline",
        rich_help_panel=TRAINING,
    ),
]
Head = Annotated[
    list[str] | None,
    Option(
        help="a further output for the file, by a head that `sparsify heads` lists: lac:0.9 for sets of plausible classes, accept:0.05 for "
        "whether to answer; repeatable",
        rich_help_panel=FOLDER,
    ),
]
ExportForm = Annotated[str | None, Option(help=FORM, show_default=DEFAULTS["form"], rich_help_panel=FOLDER)]
ExportSelection = Annotated[
    str | None, Option(help=SELECTION, show_default=DEFAULTS["selection"], rich_help_panel=FOLDER)
]
ExportPrecision = Annotated[
    str | None,
    Option(
        help="int8 also writes model-int8.onnx, the fastest of its int8 and fp32 forms on this machine",
        show_default=DEFAULTS["export_precision"],
        rich_help_panel=FOLDER,
    ),
]
ExportInput = Annotated[str | None, Option(help=INPUT, show_default=DEFAULTS["export_input"], rich_help_panel=FOLDER)]
RecipeFile = Annotated[
    Path | None,
    Option(help="TOML file of keys; options given here override them", rich_help_panel=TRAINING),
]
Settings = Annotated[
    list[str] | None,
    Option("--set", help="any other recipe key, as key=value; repeatable", rich_help_panel=TRAINING),
]
Out = Annotated[Path, Option(help="where everything is written", rich_help_panel=FOLDER)]
Resume = Annotated[
    bool,
    Option("--resume", help="continue from the last checkpoint, with identical results", rich_help_panel=FOLDER),
]
Overwrite = Annotated[bool, Option("--overwrite", help="replace an earlier run in the folder", rich_help_panel=FOLDER)]
