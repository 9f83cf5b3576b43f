"""The options of the commands other than `run` (`run_options`), and texts and defaults that several commands show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

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
FORM = "how to write layers whose groups of outputs read few inputs: grouped, dense, auto (a cost model chooses), or auto:measure"
INPUT = "input of the file: float, or uint8 for images as bytes [N, H, W, C], which the file normalises"
SELECTION = (
    "how grouped layers gather their inputs: by-batch (special operators for one sample, in an If), or gather (no If)"
)
TASK = "what the outputs mean, as for `sparsify run`; saved with the program"
DYNAMIC = "a dimension that varies besides the batch, as ids:1=T, or its range of sizes, as T=1..512; repeatable"
FOLDER, MEASURE = "The folder of the run", "Measurement"

# of compare
GridFile = Annotated[Path, Argument(help="TOML file of recipe keys, with a [grid] of methods, sparsities and seeds")]
Cores = Annotated[
    int | None,
    Option(help="cores to use in total; each cell uses its threads (default 1)", show_default="all", min=1),
]
GridSettings = Annotated[
    list[str] | None,
    Option("--set", help="set any recipe key, as key=value, or a list, as grid.seeds=0,1; repeatable"),
]
GridOut = Annotated[Path, Option(help="where everything is written", rich_help_panel=FOLDER)]
ResumeGrid = Annotated[
    bool,
    Option(
        "--resume", help="keep finished cells and continue the others, with identical results", rich_help_panel=FOLDER
    ),
]
OverwriteGrid = Annotated[
    bool, Option("--overwrite", help="replace an earlier grid in the folder", rich_help_panel=FOLDER)
]

# of trace
TracedModel = Annotated[str, Argument(help="file.py:factory, package.module:factory or model.pt2")]
ShapeData = Annotated[str, Option(help="data that give the shape of the inputs")]
TracedTarget = Annotated[str | None, Option(help="column of file.csv to predict; separate several with commas")]
Inputs = Annotated[
    list[str] | None,
    Option(
        "--input", help="shape of an input, instead of --data: 2x3x32x32 or ids=2x16:int64, batch first; repeatable"
    ),
]
WeightsFile = Annotated[Path | None, Option(help="weights to load: safetensors or a state dict")]
TrustPickle = Annotated[
    bool, Option("--trust-pickle", help="let files of model and weights run the code they may contain")
]
TracedTask = Annotated[
    str | None, Option(help=TASK, show_default=f"{DEFAULTS['task']}; with --input, inferred from the outputs")
]
Logits = Annotated[
    str | None, Option(help="position (from 0) or key of the output that the task reads, such as class scores")
]
Dynamic = Annotated[list[str] | None, Option(help=DYNAMIC)]
TracedPattern = Annotated[
    str | None, Option("--pattern", help="also show how training would store each weight with masks of this pattern")
]
TracedSparsity = Annotated[float, Option("--sparsity", help="of --pattern, in (0, 1)")]
TracedOut = Annotated[Path | None, Option(help="save the program here, e.g. model.sparsify")]

# of opt
SavedProgram = Annotated[Path, Argument(help="a saved program")]
Passes = Annotated[str, Argument(help='e.g. "insert-masks{density=0.1} | fold-masks"')]
ResultOut = Annotated[Path | None, Option(help="save the result here")]
Show = Annotated[
    str, Option(help="what to print: after (the result), each (after each pass), diff (a diff per pass), none")
]
Dump = Annotated[Path | None, Option(help="write the program's text before and after each pass to this folder")]

# of export
FinishedProgram = Annotated[Path, Argument(help="a saved program, of a run or of your own loop")]
OnnxOut = Annotated[Path, Option(help="the ONNX file")]
ProofData = Annotated[
    str | None, Option(help="data whose test inputs prove the file, as for `sparsify run`", show_default="digits")
]
RunRecipe = Annotated[
    Path | None, Option(help="recipe of the run, in place of --data: uses its data with the same split")
]
ExportTask = Annotated[
    str | None, Option(help="what the outputs mean", show_default="what the program's file says, or the one that fits")
]
ImageSize = Annotated[int | None, Option(help="side in pixels to which a folder's images are resized", min=1, max=8192)]
Opset = Annotated[int, Option(help="ONNX opset, 18 to 23")]
Storage = Annotated[
    str, Option(help="dense, or sparse: store only non-zeros if that is smaller (saves disk space, not time)")
]
Form = Annotated[str, Option(help=FORM)]
Selection = Annotated[str, Option(help=SELECTION)]
Precision = Annotated[
    str,
    Option(help="fp32, or int8: the fastest of the int8 and fp32 forms on this machine that agrees with the program"),
]
Steps = Annotated[
    str,
    Option(
        help="of a spiking network: whole (all steps of a layer at once), unrolled, scan, or single (a step per call, with its states)"
    ),
]
CallBatch = Annotated[
    int,
    Option(help="batch size to optimise for, used in timing trials; above 1, no If is written", min=1, max=2**16),
]
TrialThreads = Annotated[int, Option(help="threads of timing trials (for int8 and auto:measure)", min=1, max=512)]
InputType = Annotated[str, Option("--input", "--export-input", help=INPUT)]
OverwriteFile = Annotated[bool, Option("--overwrite", help="replace the file")]

# of bench and report
Files = Annotated[list[Path], Argument(help="ONNX files; the first is what the others are compared with")]
Threads = Annotated[int, Option(help="threads of ONNX Runtime", rich_help_panel=MEASURE)]
OpenBatch = Annotated[
    int | None,
    Option(help="batch size, if the file leaves it open", show_default="1", rich_help_panel=MEASURE),
]
Rounds = Annotated[int, Option(help="number of rounds; each file is timed once per round", rich_help_panel=MEASURE)]
Shapes = Annotated[
    list[str] | None,
    Option(help="shape of an input with other open dimensions: name=1x3x224x224; repeatable", rich_help_panel=MEASURE),
]
Json = Annotated[Path | None, Option("--json", help="write the figures and a description of the machine here")]
Finished = Annotated[Path, Argument(help="folder of a finished run, or of a grid")]
