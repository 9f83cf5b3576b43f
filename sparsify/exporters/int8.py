"""int8 files: the fastest of several forms of one program, by timed trials on this machine, that agrees with the program.

Dense layers are quantized by `sparsify.exporters.int8_dense`, grouped linear layers by `sparsify.exporters.int8_grouped`, grouped
convolutions not at all: their int8 kernels are slower than their fp32 ones. Ranges come from calibration data. A trial of every layer
alone (`sparsify.exporters.int8_layers`) proposes a mixed form; whole files, it among them, are then timed in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import torch

from sparsify.errors import ExportError
from sparsify.exporters.acceptance import Agreement, judge
from sparsify.exporters.graphs import let_go
from sparsify.exporters.int8_forms import FAILED, Forge, Lower, Trial, form_in_int8, quantizable, quantize
from sparsify.exporters.int8_head import refit_head
from sparsify.exporters.int8_samples import Samples
from sparsify.exporters.int8_spared import bearable
from sparsify.exporters.preprocessing import Preprocessing
from sparsify.exporters.single_samples import check_same
from sparsify.exporters.skeleton import Written
from sparsify.heads import HEADS
from sparsify.timing import Array, opened, run_over, times, values_of


@dataclass(frozen=True)
class Int8:
    """How an int8 file came about, and how it agrees with the program on held-out inputs.

    Attributes:
        chosen: the fastest trial that agrees well enough, which is the file.
        trials: all, fastest first.
        layers: milliseconds of each layer run by itself, by weight and form.
        batch, threads: of the trials.
        decisions: those of the task (of samples, labels, positions) that were compared with the program's; 0 where nothing is decided.
        agreed: those that are the program's.
        largest_error: of the logits (or of what the task reads), relative to their largest magnitude.
        head: what became of the calibration head: fitted again, kept and why, or none.
        figures: on the held-out samples, where labels were given: NLL and ECE, or coverage and width of intervals, with the program's head
            (before) and the file's (after).
        clear, clear_agreed: decisions whose margin is well above the file's errors, and those of them that are the program's.
        passed_over: by name of a faster trial, which output is off and how (`sparsify.exporters.acceptance`); and of a form that could
            not be made, why.
        errors: by name of every output of the file, how far it is off: root mean square error relative to the standard deviation over the
            samples, or the share of its values that differ where they are whole numbers.
    """

    chosen: Trial
    trials: tuple[Trial, ...]
    layers: Mapping[str, Mapping[str, float]]
    batch: int
    threads: int
    decisions: int
    agreed: int
    largest_error: float
    head: str
    figures: Mapping[str, float] = field(default_factory=dict)
    clear: int = 0
    clear_agreed: int = 0
    passed_over: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def refused(self) -> str:
        """Why the file computes in fp32 although int8 forms were faster, or although none could be tried; or ""."""
        if self.chosen.integers:
            return ""
        slower = any(trial.integers and trial.name not in self.passed_over for trial in self.trials)
        reasons = {name: text for name, text in self.passed_over.items() if not (slower and text.startswith(FAILED))}
        names = {text: [name for name, other in reasons.items() if other == text] for text in reasons.values()}
        return "; ".join(f"{' and '.join(map(repr, forms))}: {text.rstrip('.')}" for text, forms in names.items())


def int8_file(
    models: Mapping[str, ir.Model],
    samples: Samples,
    *,
    lower: Lower | None = None,
    written: Written = lambda model: model,
    batch: int = 1,
    threads: int = 1,
) -> tuple[ir.Model, Int8]:
    """The fastest of `quantize` that `sparsify.exporters.acceptance` takes for the program, its calibration head fitted again.

    Where that is an fp32 file because faster int8 forms were refused, a form with only some of the layers in int8 is looked for.

    Args:
        models: fp32 files by form: ``dense``, and ``grouped`` where that differs. They are not judged here: fp32 files are proved.
        samples: to observe ranges on, to compare with, and to fit on.
        lower: see `Lower`; needed where there is a ``grouped`` file.
        written: what a file becomes before it is written.
        batch, threads: of the trials.

    Returns:
        The file as it is written, and how it came about.
    """
    tried = quantize(models, samples, lower=lower, written=written, threads=threads)
    court, trials = _Court(samples, written, dict(tried.failed)), [trial for trial, _ in tried.found]
    taken = next(filter(None, (court.taken(trial, model) for trial, model in tried.found)))
    if court.passed_over and not taken.trial.integers:
        spared = _spared(models, court, taken, threads)
        if spared is not None:
            taken = spared
            trials.insert(0, spared.trial)
    let_go(*(model for _, model in tried.found if model is not taken.model and model not in models.values()))
    logits = taken.agreements[samples.main]
    result = Int8(
        chosen=taken.trial,
        trials=tuple(sorted(trials, key=lambda trial: trial.milliseconds)),
        layers=tried.layers,
        batch=batch,
        threads=threads,
        decisions=logits.decisions,
        agreed=logits.agreed,
        largest_error=logits.largest_error,
        head=taken.head,
        figures=taken.figures,
        clear=logits.clear,
        clear_agreed=logits.clear_agreed,
        passed_over=court.passed_over,
        errors={name: agreement.error for name, agreement in taken.agreements.items()},
    )
    return taken.model, result


@dataclass(frozen=True)
class _Taken:
    """A trial that may stand in for the program: its file as it is written, how each output agrees, and its head."""

    trial: Trial
    model: ir.Model
    agreements: Mapping[str, Agreement]
    head: str = "kept: the file computes in fp32"
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Court:
    """Judges files, and keeps why they were passed over."""

    samples: Samples
    written: Written
    passed_over: dict[str, str]

    def taken(self, trial: Trial, model: ir.Model) -> _Taken | None:
        """The trial, where it may stand in for the program."""
        try:
            agreements = compared(self.samples, values_of(model, self.samples.held_out))
        except ExportError as error:
            if not trial.integers:
                raise
            self.passed_over[trial.name] = str(error)
            return None
        if not trial.integers:
            return _Taken(trial, self.written(model), agreements)
        if reason := refusal(agreements):
            self.passed_over[trial.name] = reason
            return None
        head, figures = refit_head(model, self.samples)
        final = self.written(model)
        try:
            check_same(model, final, self.samples.tried or self.samples.held_out[:1])
        except ExportError as error:
            self.passed_over[trial.name] = str(error)
            return None
        return _Taken(trial, final, agreements, head, figures)

    def allows(self, model: ir.Model) -> bool:
        """Whether a file runs and may stand in for the program."""
        try:
            return not refusal(compared(self.samples, values_of(model, self.samples.held_out)))
        except ExportError:
            return False


def compared(samples: Samples, values: Mapping[str, list[Array]]) -> dict[str, Agreement]:
    """How every output of the program agrees with what a file gives for the held-out samples, a batch an entry."""
    found: dict[str, Agreement] = {}
    main, task = samples.wanted[samples.main], samples.task
    shape = main.table(main.values).shape
    calibrated = {samples.main, *(name for head in HEADS.values() for name in head.outputs if name not in head.beside)}
    for name, wanted in samples.wanted.items():
        want, have = wanted.table(wanted.values), wanted.table(values[name])
        alike = name in calibrated and want.shape == shape
        labels = samples.labels[: len(want)] if samples.labels is not None and alike else None
        found[name] = judge(
            want,
            have,
            labels,
            scores=alike and "probabilities" in samples.wanted,
            by_sample=wanted.samples is not None,
            task=task if alike and task is not None and task.output == samples.main else None,
            threshold=0.5 if name == "probabilities" and task is not None and task.link == "sigmoid" else 0.0,
        )
    return found


def refusal(agreements: Mapping[str, Agreement]) -> str:
    """Which output is off, and how; or ""."""
    return next((f"output {name!r}: {one.refused}" for name, one in agreements.items() if one.refused), "")


def _spared(models: Mapping[str, ir.Model], court: _Court, fp32: _Taken, threads: int) -> _Taken | None:
    """A file with as many layers in int8 as agree with the program, where it is faster than ``fp32``."""
    form = fp32.trial.name.partition(",")[0]
    forge, layers = Forge(court.samples.calibration), quantizable(models[form], form)
    found: dict[tuple[str, ...], tuple[ir.Model, dict[str, str]]] = {}

    def good(part: tuple[str, ...]) -> bool:
        with forge.noting(str(part)):
            found[part] = form_in_int8(models[form], form, dict.fromkeys(part, "int8"), court.samples.calibration)
        return part in found and court.allows(found[part][0])

    part = bearable(layers, good)
    if not part:
        return None
    name, (model, shown) = f"{form}, {len(part)} of {len(layers)} layers int8", found[part]
    files = {name: court.written(model), fp32.trial.name: fp32.model}
    timed = times({key: (file, court.samples.timed) for key, file in files.items()}, threads=threads)
    if timed[name] >= timed[fp32.trial.name]:
        court.passed_over[name] = "it agrees with the program, but is slower than fp32"
        return None
    return court.taken(Trial(name, timed[name], shown), model)


def check_bytes(file: Path, said: Mapping[str, list[Array]], samples: Samples, baked: Preprocessing) -> None:
    """Run a file that takes bytes on the held-out samples as bytes.

    Args:
        file: as it is written.
        said: what the file gave before it took bytes.
        samples: whose held-out inputs are those that bytes become.
        baked: the preprocessing in the file.

    Raises:
        ExportError: If an output is not what it was.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    stored = [
        {name: baked.stored(torch.from_numpy(x)).numpy() for name, x in feeds.items()} for feeds in samples.held_out
    ]
    wanted = {name: replace(one, values=said[name]) for name, one in samples.wanted.items()}
    reason = refusal(
        compared(replace(samples, wanted=wanted, labels=None), run_over(opened(str(file), options), stored))
    )
    if reason:
        raise ExportError(
            f"the int8 file computes something else from bytes than from numbers ({reason}). Nothing was written. Export it with "
            f"input_type='float', and please report this model."
        )
