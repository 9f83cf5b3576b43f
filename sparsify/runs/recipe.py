"""A recipe: everything a run depends on. `sparsify.runs.keys` says how a file writes each field."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sparsify.errors import RecipeError, TaskError
from sparsify.heads import fitting
from sparsify.loading.augmentation import Augmentation
from sparsify.methods import Method, build
from sparsify.methods.durations import read_length
from sparsify.methods.registry import layers
from sparsify.methods.registry import options as method_options
from sparsify.reading.ood import short_names
from sparsify.runs.further_heads import check_calibrator, check_further_heads
from sparsify.runs.keys import COLUMNS, from_tables, spelt, to_tables
from sparsify.runs.pairs import merged
from sparsify.runs.preparing import check_passes
from sparsify.runs.toml import check_values, read_toml, shown, to_toml
from sparsify.tasks import TASKS, Task
from sparsify.tasks import build as build_task
from sparsify.tasks import kind as task_kind
from sparsify.training import Settings
from sparsify.user_code import function as user_function

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Threads = Annotated[int, Field(ge=1, le=512)]
"""Largest number of threads; more help no machine, and a system that cannot start them kills the process without a message."""


def _warmup(value: float | str) -> float | str:
    read_length(value, "train.warmup", 0)
    return value


Rate = Field(gt=0.0, allow_inf_nan=False)
Value = int | float | str | bool
Option = Value | list[int | float]
AUTO = "auto"
"""The value of a task that is inferred from data and model (`sparsify.runs.inferring`), and of a head that the program decides."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Recipe:
    """What to train, on what, and how. The defaults are the embedded digits job.

    Attributes:
        model: ``file.py:factory``, ``package.module:factory``, ``model.pt2``, or ``program.sparsify``, whose training continues from its
            masks.
        weights: initial weights, as safetensors or a state dict; None: the model's own.
        logits: position (from 0) or key of the output that the task reads, if several outputs of the model could be it.
        task: what the outputs mean: ``classification``, ``binary``, ``multilabel``, ``regression``, ``dense``, ``sequence``, ``custom``,
            or ``auto``, the only task that fits the data and the model.
        loss: ``mse``, ``mae`` or ``huber`` for a regression; for a regression or a custom task also ``file.py:function`` of output and
            target. None: the task's own loss.
        figures: for a custom task: ``file.py:function`` of output and target, which returns numbers by name, the headline first.
        task_options: further options of the task, such as ``delta`` and ``scale`` of regression, ``ignore`` of dense and sequence, and
            ``lower_is_better`` of custom.
        dynamic: dimensions of inputs that vary besides the batch, as ``ids:1=T``, and their smallest and largest size, as ``T=1..512``.
        trust_pickle: let the files of model and weights run the code they may contain.
        passes: passes that rewrite the model before the method does, as a pipeline: ``spiking{steps=4}``.
        data: ``digits``, ``file.npz``, ``file.csv``, a folder of images, or ``file.py:factory``.
        target: columns of a table to predict; several are predicted together.
        category_columns: columns of a table to read as categories, even if they hold numbers.
        ignore_columns: columns of a table that are neither inputs nor targets.
        holdout: fraction of the training data kept for validation and calibration, in (0, 1), if the data have no validation part.
        test_holdout: fraction of the training data kept for testing, in (0, 1), if the data have no test part.
        train_samples: number of training samples to use, including the held-out part, drawn by ``seed``; None: all.
        image_size: side in pixels to which a folder's images, or encoded images, are resized.
        channels: how encoded images (of a folder, or in an archive) are read: ``rgb``, ``grey``, or ``auto``, which is grey if all training
            images are.
        normalise: ``auto`` scales images per channel, and columns of a table, to mean 0 and deviation 1; ``none`` leaves bytes in [0, 1]
            and floats unchanged.
        mean: one number per channel, or one for all, that is subtracted from images in [0, 1] (or features) instead of the training part's
            mean; requires ``std``.
        std: one number per channel, or one for all, above 0, that images (or features) are divided by; requires ``mean``.
        ood: out-of-distribution inputs to be told apart from the test part: ``file.npz``, a folder of images, ``file.py:factory``,
            ``photos``.
        ood_validation: other such inputs, on which ``ood-auto`` of ``heads`` chooses a score.
        shift: also measure a classifier on test images under noise, blur and brightness.
        method: a method that `sparsify methods` lists, or ``file.py:function``; wrappers are written around it, ``cigl(agent(rigl))``.
        sparsity: inactive fraction of the maskable weights, in (0, 1); density is 1 - sparsity.
        pattern: which positions may be active together: a pattern that `sparsify patterns` lists.
        keep_dense: globs of the names of weights that get no mask.
        method_options: further options of the method. Options of a wrapper are in a table under its name; for a function of your own, the
            table has the function's name.
        baseline: also train the dense model for as many epochs.
        teacher: saved program that `distilled` methods learn from; None: the baseline.
        calibrator: a head that `sparsify heads` lists, with its values: ``masked-temperature:0.3:20``. ``auto`` keeps the head of a saved
            program if it fits the task, else it is the usual head of the task. Any other replaces the head of a saved program;
            ``temperature`` means the usual head if the task has no temperature.
        heads: further heads that `sparsify heads` lists, with their values: ``lac:0.9``, ``accept:0.05``. Each makes an output of its own,
            in place of that of a head of a saved program that makes the same; the other heads of a saved program stay.
        form: how to export layers whose groups of outputs read few inputs: ``grouped``, ``dense``, ``auto``, ``auto:measure``.
        selection: how grouped linear layers gather their inputs: ``by-batch``, with special operators for one sample, or ``gather``.
        export_precision: ``int8`` also writes ``model-int8.onnx`` (and ``dense-int8.onnx``), the fastest of their int8 and fp32 forms by
            timed trials; ``precision`` is that of training.
        export_input: ``float``, or ``uint8`` for files that take images as bytes and normalise them inside the file.
        augment: ``crop-flip`` pads training images by 4, crops at random and flips half of them.
        export_batch: batch size to optimise for, used in timing trials and ``latency.json``; above 1, no ``If`` is written.
        threads: number of torch threads.
        warmup: steps over which the learning rate rises linearly to ``lr``, before the schedule begins, or a share of the run (``"5%"``);
            at least 0 and shorter than the run.
        The others are those of `sparsify.training.Settings` and `sparsify.export`.
    """

    model: str = "sparsify.loading:digits_cnn"
    weights: str | None = None
    logits: Annotated[int, Field(ge=0)] | str | None = None
    task: str = "classification"
    loss: str | None = None
    figures: str | None = None
    task_options: dict[str, Value] = Field(default_factory=dict)
    dynamic: tuple[str, ...] = ()
    trust_pickle: bool = False
    passes: str = ""
    data: str = "digits"
    target: tuple[str, ...] = ()
    category_columns: tuple[str, ...] = ()
    ignore_columns: tuple[str, ...] = ()
    holdout: Fraction = 0.15
    test_holdout: Fraction | None = None
    train_samples: Positive | None = None
    image_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    channels: Literal["auto", "rgb", "grey"] = "auto"
    normalise: Literal["auto", "none"] = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    ood: tuple[str, ...] = ()
    ood_validation: tuple[str, ...] = ()
    shift: bool = False
    method: str = "gmp"
    sparsity: Fraction = 0.9
    pattern: str = "unstructured"
    keep_dense: tuple[str, ...] = ()
    method_options: dict[str, Option | dict[str, Option]] = Field(default_factory=dict)
    baseline: bool = False
    teacher: str | None = None
    epochs: Annotated[int, Field(ge=1, le=10**6)] = 20
    batch_size: Positive = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Rate] = 0.05
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 5e-4
    schedule: Literal["cosine", "cosine-tail", "step", "one-cycle", "constant"] = "cosine"
    warmup: Annotated[int | float | str, AfterValidator(_warmup)] = "25% from 0 to 20"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    clip_gradient_norm: Annotated[float, Rate] | None = None
    augment: Augmentation = "none"
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    early_stop: Positive | None = None
    calibrator: str = AUTO
    heads: tuple[str, ...] = ()
    opset: Annotated[int, Field(ge=18, le=23)] = 20
    storage: Literal["dense", "sparse"] = "dense"
    form: Literal["auto", "dense", "grouped", "auto:measure"] = "auto"
    selection: Literal["by-batch", "gather"] = "by-batch"
    export_precision: Literal["fp32", "int8"] = "fp32"
    export_input: Literal["float", "uint8"] = "float"
    export_batch: Annotated[int, Field(ge=1, le=2**16)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Threads = 2
    compact: Literal["auto", "always", "never"] = "auto"
    checkpoint_every: Positive = 200
    workers: Annotated[int, Field(ge=0, le=128)] = 0

    def ood_names(self, key: str = "ood") -> dict[str, str]:
        """Short names of the sets of a key, ``ood`` or ``ood_validation``, with their texts; see `sparsify.reading.ood.short_names`."""
        return short_names(getattr(self, key))

    @property
    def density(self) -> float:
        """1 - sparsity, without the binary rounding error of the subtraction."""
        return round(1.0 - self.sparsity, 12)

    def build_method(self) -> Method:
        """Return the method with this recipe's density, pattern and options."""
        known = method_options(layers(self.method)[-1])
        common = {"density": self.density, "pattern": self.pattern, "keep_dense": self.keep_dense}
        return build(self.method, {**{k: v for k, v in common.items() if k in known}, **self.method_options})

    def build_task(self) -> Task:
        """Return the task with this recipe's loss, figures and options.

        Raises:
            TaskError: If it is unknown, or an option is unknown or has a wrong value.
            RecipeError: If another key is for classification only, or a loss or figures are given twice.
            LoadError: If a function of the user's own cannot be loaded.
        """
        if self.task == AUTO:
            raise TaskError(
                "the task 'auto' is found out for a run, and for the keys that the rows of a grid share. Name the task here: kind = "
                "'regression' under [task]."
            )
        TASKS.find(self.task, also=(AUTO,))
        given: dict[str, Any] = dict(self.task_options)
        for key, text in (("criterion", self.loss), ("measure", self.figures)):
            if text is not None:
                self._check_own(key, text)
                given[key] = user_function(text, "loss" if key == "criterion" else "figures") if ":" in text else text
        found = build_task(self.task, given)
        if self.ood and found.name != "classification":
            raise RecipeError(
                f"ood is for the task classification, and this is {found.name!r}: its scores are computed from the scores of classes, "
                f"[N, K]. Leave it out."
            )
        kinds = fitting(found)
        if self.calibrator.partition(":")[0] not in (AUTO, "temperature", *kinds):
            raise RecipeError(
                f"the calibration head {self.calibrator!r} does not fit task {found.name!r}, which has {' and '.join(kinds) or 'none'}. "
                f"Set export.calibrator to one that `sparsify heads` lists for the task, or leave it out."
            )
        check_further_heads(self.heads, found.name, kinds)
        if self.label_smoothing and found.link == "none":
            raise TaskError(
                f"task {self.task!r} has no labels to smooth, found label_smoothing = {self.label_smoothing}. Leave it out."
            )
        return found

    def _check_own(self, option: str, text: str) -> None:
        """Refuse a loss or figures if the task has its own, or if they are also given as an option of the task."""
        name = {"criterion": "loss", "measure": "figures"}[option]
        having = [cls.name for cls in TASKS.values() if option in {field.name for field in dataclasses.fields(cls)}]
        if task_kind(self.task).name not in having:
            raise TaskError(
                f"task {self.task!r} brings its own {name}, found {name} {text!r} (--{name}, {name} under [task]). Leave it out, or set a "
                f"task that takes one: {', '.join(having)}."
            )
        if option in self.task_options:
            raise RecipeError(
                f"task.{name} is {text!r} and task.options.{option} is {self.task_options[option]!r}: both say the same thing. Leave one "
                f"out."
            )

    def taught_by_baseline(self) -> bool:
        """Return whether the method learns from the dense baseline of the run, or compares itself with it in training."""
        return self.teacher is None and self.build_method().needs_another

    def settings(self) -> Settings:
        """Return the training part; the warm-up must be a number of steps (`sparsify.runs.preflight.with_warmup`)."""
        return Settings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Settings)})

    def to_toml(self) -> str:
        """Return the resolved recipe; `parse_recipe` reads it back unchanged."""
        return to_toml(to_tables({f.name: getattr(self, f.name) for f in dataclasses.fields(self)}))  # type: ignore[arg-type]

    def hash(self) -> str:
        """SHA-256 of the resolved recipe."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()


EMBEDDED: Mapping[str, Any] = {
    "model": "sparsify.loading:digits_wide_cnn",
    "data": "digits",
    "method": "gmp",
    "pattern": "grouped:64",
    "sparsity": 0.9,
    "epochs": 15,
    "baseline": True,
}
"""The keys of the embedded job, which `sparsify run` does when it is given no model, no data and no recipe."""


def with_embedded(recipe: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options ``given``; without a recipe, model or data, they override the keys of the embedded job."""
    chosen = {key: value for key, value in given.items() if value is not None}
    return chosen if recipe is not None or chosen.keys() & {"model", "data"} else {**EMBEDDED, **chosen}


def parse_recipe(path: Path | None, overrides: Mapping[str, Any]) -> Recipe:
    """Parse a recipe from a TOML file and options that override it.

    Raises:
        RecipeError: If the file is missing or malformed, a key is unknown (the message names the nearest), or a value is out of range.
    """
    written = read_toml(path) if path is not None else {}
    if "grid" in written:
        raise RecipeError(f"{path} is the recipe of a grid: it has a [grid]. Run it with `sparsify compare {path}`.")
    values = merged(from_tables(written), {key: value for key, value in overrides.items() if value is not None})
    check_keys("a recipe", values, [f.name for f in dataclasses.fields(Recipe)])  # type: ignore[arg-type]
    check_values(values)
    for key in COLUMNS:
        if isinstance(values.get(key), str):
            values[key] = tuple(name.strip() for name in values[key].split(","))
    try:
        recipe = TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        problems = [f"{_place(e['loc'])}: {e['msg']}, found {shown(e['input'])}" for e in error.errors()]
        raise RecipeError("invalid recipe: " + "; ".join(problems[:6]) + ".") from error
    check_calibrator(recipe.calibrator)
    check_passes(recipe.passes)
    if len({*recipe.ood}) < len(recipe.ood):
        raise RecipeError(f"ood names a set twice: {', '.join(recipe.ood)}. Name each once.")
    method = recipe.build_method()
    if not method.needs_another and recipe.teacher is not None:
        raise RecipeError(
            f"method {method.name!r} has no use for the teacher {recipe.teacher}. Wrap it: distilled({recipe.method})."
        )
    if recipe.taught_by_baseline() and not recipe.baseline:
        raise RecipeError(
            f"method {method.name!r} needs another model in training, a teacher. Train one in this run with baseline = true (--baseline), "
            f"or name one with teacher = the program.sparsify of another run; both keys stand under [method]."
        )
    return recipe


def _place(location: Sequence[int | str]) -> str:
    """Return the place of a value in the file: ``train.lr``."""
    return ".".join([spelt(str(location[0])), *map(str, location[1:])])


def check_keys(owner: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse a key that ``owner`` does not have.

    Raises:
        RecipeError: Naming the nearest keys.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            raise RecipeError(
                f"{owner} has no key {key!r}. Nearest: {', '.join(near) or 'none'}. All: {', '.join(known)}."
            )
