"""A recipe: everything a run depends on. `sparsify.runs.keys` says how a file writes each field."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sparsify.errors import RecipeError, TaskError
from sparsify.heads import HEADS, fitting
from sparsify.loading.augmentation import Augmentation
from sparsify.methods import Method, build
from sparsify.methods.registry import layers
from sparsify.methods.registry import options as method_options
from sparsify.runs.keys import field_of, from_tables, spelt, to_tables
from sparsify.runs.toml import check_values, read_toml, shown, to_toml
from sparsify.tasks import TASKS, Task
from sparsify.tasks import build as build_task
from sparsify.tasks import kind as task_kind
from sparsify.training import Settings
from sparsify.user_code import function as user_function

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Threads = Annotated[int, Field(ge=1, le=512)]
"""More than any machine gains by; a system that cannot start them ends the process without a word."""
Rate = Field(gt=0.0, allow_inf_nan=False)
Value = int | float | str | bool
AUTO = "auto"
"""The task of a recipe that leaves it to the data and the model (`sparsify.runs.inferring`), and a head that is left to the program."""
OPTIONS = ("method_options", "task_options")
"""Keys that are tables of further keys."""
LISTS = ("keep_dense", "ood", "mean", "std")
"""Keys whose values are lists, written with commas in ``key=value``."""
COLUMNS = ("target", "category_columns", "ignore_columns", "dynamic")
"""Keys whose values are lists of names, or one text of names with commas."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Recipe:
    """What to train, on what, and how. The defaults are the embedded digits job.

    Attributes:
        model: ``file.py:factory``, ``package.module:factory``, ``model.pt2``, or ``program.sparsify``, which is trained on from its masks.
        weights: safetensors or a state dict to start from; None: the model's own.
        logits: position (from 0) or key of the output that the task reads, where the model returns several that could.
        task: what the outputs mean: ``classification``, ``binary``, ``multilabel``, ``regression``, ``dense``, ``sequence``, ``custom``,
            or ``auto``, the one that fits the data and the model, where only one does.
        loss: of regression ``mse``, ``mae`` or ``huber``; of regression and a custom task ``file.py:function`` of output and target. None:
            the task's own.
        figures: of a custom task: ``file.py:function`` of output and target, which returns numbers by name, the headline first.
        task_options: further options of the task, such as ``delta`` and ``scale`` of regression, ``ignore`` of dense and sequence, and
            ``lower_is_better`` of custom.
        dynamic: dimensions of inputs that vary beside the batch, as ``ids:1=T``, and their smallest and largest size, as ``T=1..512``.
        trust_pickle: let the files of model and weights run the code they may contain.
        data: ``digits``, ``file.npz``, ``file.csv``, a folder of images, or ``file.py:factory``.
        target: columns of a table to predict; several are predicted together.
        category_columns: columns of a table that hold categories, whatever they look like.
        ignore_columns: columns of a table that are neither inputs nor targets.
        holdout: fraction of the training data kept for validation and calibration, where the data bring none.
        test_holdout: fraction of the training data kept for testing, where the data bring no test part.
        train_samples: how many samples of the training data are used, the held-out part among them, drawn by ``seed``; None: all.
        image_size: side in pixels to which a folder's images, or encoded images, are resized.
        channels: of the images of a folder, or encoded images: ``rgb``, ``grey``, or ``auto``, grey where the training images all are.
        normalise: ``auto`` brings images to mean 0 and deviation 1 per channel, and columns of a table; ``none`` leaves bytes as [0, 1]
            and floats as they are.
        mean: per channel, or one for all, subtracted from images as [0, 1] (or features) instead of the training part's; goes with ``std``.
        std: per channel, or one for all, that they are divided by.
        ood: out-of-distribution inputs to be told from the test part: ``file.npz``, a folder of images, ``file.py:factory``, ``photos``.
        method: see `sparsify methods`, or ``file.py:function``; wrappers are written around it, ``cigl(agent(rigl))``.
        sparsity: inactive fraction of the maskable weights; density is 1 - sparsity.
        pattern: see `sparsify patterns`.
        keep_dense: globs of weights without a mask.
        method_options: further options of the method; those of a wrapper in a table of its name, of a function's in that of the function.
        baseline: train the dense model too, same budget.
        teacher: saved program that `distilled` methods learn from; None: the baseline.
        calibrator: see `sparsify heads`. ``auto`` is the kind of head that a saved program has, where it fits the task, else the usual
            head of the task. Any other replaces the head of a saved program; ``temperature`` means the usual head of a task that has none.
        form: how layers whose groups of outputs read few inputs are exported: ``grouped``, ``dense``, ``auto``, ``auto:measure``.
        selection: of the inputs of grouped linear layers: ``by-batch``, with operators of their own for one sample, or ``gather``.
        export_precision: ``int8`` also writes ``model-int8.onnx`` (and ``dense-int8.onnx``), the fastest of their int8 and fp32 forms by
            timed trials; ``precision`` is that of training.
        export_input: ``float``, or ``uint8`` for files that take images as bytes and normalise them in their graph.
        augment: ``crop-flip`` pads training images by 4, crops at random and flips half of them.
        export_batch: samples most calls will have: trials and ``latency.json`` run so many, and above 1 no ``If`` is written.
        threads: torch threads.
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
    method: str = "gmp"
    sparsity: Fraction = 0.9
    pattern: str = "unstructured"
    keep_dense: tuple[str, ...] = ()
    method_options: dict[str, Value | dict[str, Value]] = Field(default_factory=dict)
    baseline: bool = False
    teacher: str | None = None
    epochs: Annotated[int, Field(ge=1, le=10**6)] = 20
    batch_size: Positive = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Rate] = 0.05
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 5e-4
    schedule: Literal["cosine", "cosine-tail", "step", "one-cycle", "constant"] = "cosine"
    warmup: Annotated[int, Field(ge=0, le=10**9)] = 20
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    clip_gradient_norm: Annotated[float, Rate] | None = None
    augment: Augmentation = "none"
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    early_stop: Positive | None = None
    calibrator: str = AUTO
    opset: Annotated[int, Field(ge=18, le=23)] = 20
    storage: Literal["dense", "sparse"] = "dense"
    form: Literal["auto", "dense", "grouped", "auto:measure"] = "auto"
    selection: Literal["by-batch", "gather"] = "by-batch"
    export_precision: Literal["fp32", "int8"] = "fp32"
    export_input: Literal["float", "uint8"] = "float"
    export_batch: Annotated[int, Field(ge=1, le=2**16)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Threads = 2
    checkpoint_every: Positive = 200
    workers: Annotated[int, Field(ge=0, le=128)] = 0

    def ood_names(self) -> dict[str, str]:
        """A short name of each of ``ood``, the file's without its ending, with its text; the text itself where names are not unique."""
        short = [Path(text).stem if Path(text).exists() else text.rpartition(":")[2] for text in self.ood]
        unique = len({*short}) == len(short)
        return dict(zip(short if unique else self.ood, self.ood, strict=True))

    @property
    def density(self) -> float:
        """1 - sparsity, free of the binary rounding of the subtraction."""
        return round(1.0 - self.sparsity, 12)

    def build_method(self) -> Method:
        """The method with this recipe's density, pattern and options."""
        known = method_options(layers(self.method)[-1])
        common = {"density": self.density, "pattern": self.pattern, "keep_dense": self.keep_dense}
        return build(self.method, {**{k: v for k, v in common.items() if k in known}, **self.method_options})

    def build_task(self) -> Task:
        """The task with this recipe's loss, figures and options.

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
        if self.calibrator not in (AUTO, "temperature", *kinds):
            raise RecipeError(
                f"the calibration head {self.calibrator!r} does not fit task {found.name!r}, which has {' and '.join(kinds) or 'none'}. "
                f"Set export.calibrator to one that `sparsify heads` lists for the task, or leave it out."
            )
        if self.label_smoothing and found.link == "none":
            raise TaskError(
                f"task {self.task!r} has no labels to smooth, found label_smoothing = {self.label_smoothing}. Leave it out."
            )
        return found

    def _check_own(self, option: str, text: str) -> None:
        """Refuse a loss or figures of a task that has its own, or that are given as an option of the task as well."""
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
        """Whether the method learns from the dense baseline of the run."""
        return self.teacher is None and self.build_method().distillation is not None

    def settings(self) -> Settings:
        """The training part."""
        return Settings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Settings)})

    def to_toml(self) -> str:
        """The resolved recipe; `parse_recipe` reads it back unchanged."""
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
    """The options ``given``, over the keys of the embedded job where they name neither a model nor data and there is no recipe."""
    chosen = {key: value for key, value in given.items() if value is not None}
    return chosen if recipe is not None or chosen.keys() & {"model", "data"} else {**EMBEDDED, **chosen}


def parse_recipe(path: Path | None, overrides: Mapping[str, Any]) -> Recipe:
    """A recipe from a TOML file and options that override it.

    Raises:
        RecipeError: If the file is missing or malformed, a key is unknown (naming the nearest), or a value out of range.
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
    if recipe.calibrator != AUTO:
        HEADS.find(recipe.calibrator)
    if len({*recipe.ood}) < len(recipe.ood):
        raise RecipeError(f"ood names a set twice: {', '.join(recipe.ood)}. Name each once.")
    method = recipe.build_method()
    if method.distillation is None and recipe.teacher is not None:
        raise RecipeError(
            f"method {method.name!r} has no use for the teacher {recipe.teacher}. Wrap it: distilled({recipe.method})."
        )
    if recipe.taught_by_baseline() and not recipe.baseline:
        raise RecipeError(
            f"method {method.name!r} learns from a teacher. Train one in this run with baseline = true (--baseline), or name one with "
            f"teacher = the program.sparsify of another run; both keys stand under [method]."
        )
    return recipe


def _place(location: Sequence[int | str]) -> str:
    """Where in the file a value stands: ``train.lr``."""
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


def parse_pairs(items: Sequence[str]) -> dict[str, Any]:
    """Overrides for `parse_recipe` from ``table.key=value`` texts; ``method.options.key=value`` is an option of the
    method, and ``method.options.wrapper.key=value`` one of a wrapper.

    Raises:
        RecipeError: If an item is not of that form.
    """
    found: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise RecipeError(f"--set {item!r} should be table.key=value, such as train.lr=0.1.")
        words = key.strip().split(".")
        rest = words[2:]
        try:
            key = field_of(".".join(words[:2]))
        except RecipeError as error:
            raise RecipeError(f"--set {item!r}: {error}") from error
        if key in OPTIONS and rest:
            *layer, option = rest
            table = found.setdefault(key, {})
            for name in layer:
                table = table.setdefault(name, {})
                if not isinstance(table, dict):
                    raise RecipeError(
                        f"--set {item!r}: {name!r} was given a value before. It is a layer, or an option."
                    )
            table[option.replace("-", "_")] = _value(text)
        elif rest:
            raise RecipeError(
                f"--set {item!r}: only method.options and task.options have keys below them. Write table.key=value."
            )
        else:
            found[key] = text if key in COLUMNS else _list(text) if key in LISTS else _value(text)
    return found


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the overrides; tables are merged key by key."""
    found = dict(values)
    for key, value in overrides.items():
        before = found.get(key)
        found[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return found


def _list(text: str) -> tuple[Any, ...]:
    return tuple(map(_value, text.split(",")))


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)
