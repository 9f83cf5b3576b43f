"""Chooses the int8 file of a program: the fastest of several forms that agrees with the program, by timed trials on this machine.

`sparsify.exporters.int8_dense` quantizes dense layers, and `sparsify.exporters.int8_grouped` grouped linear layers. Grouped convolutions
are not quantized, because their int8 kernels are slower than the fp32 ones. Ranges are observed on calibration data. First each layer is
timed separately (`sparsify.exporters.int8_layers`), and the fastest form of each is combined to a mixed form. Then whole models,
including the mixed form, are timed in interleaved runs.
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
from sparsify.exporters.graphs import drop_weights
from sparsify.exporters.int8_forms import FAILED, FormMaker, Lower, Trial, form_in_int8, quantizable, quantize
from sparsify.exporters.int8_head import Refit, refit_head
from sparsify.exporters.int8_samples import Samples
from sparsify.exporters.int8_spared import agreeing_layers
from sparsify.exporters.preprocessing import Preprocessing
from sparsify.exporters.single_samples import check_same
from sparsify.exporters.skeleton import Written
from sparsify.heads import HEADS
from sparsify.timing import Array, opened, run_over, times, values_of


@dataclass(frozen=True)
class Int8:
    """The result of an int8 export: the form that was written, its alternatives, and its agreement with the program on held-out inputs.

    Attributes:
        chosen: the trial that was written: the fastest that agrees well enough with the program.
        trials: all trials, the fastest first.
        layers: milliseconds of each layer run separately, by weight name and form.
        batch, threads: batch size and number of threads of the trials.
        decisions: number of decisions (per sample, label or position) compared with those of the program; 0 if the task decides nothing.
        agreed: number of these decisions that equal the program's.
        largest_error: largest error of the logits (or the output that the task reads), relative to their largest magnitude.
        head: whether the calibration head was fitted again, or kept and why, or that there is none.
        figures: if labels were given, NLL and ECE, or coverage and width of intervals, on the held-out samples, with the program's head
            (before) and the refitted one (after).
        clear, clear_agreed: number of decisions whose margin is well above the errors of the file, and how many of them equal the
            program's.
        passed_over: the reason for each faster trial that was rejected (`sparsify.exporters.acceptance`), and for each form that could not
            be made, by name.
        errors: error of each output of the file, by name: the root mean square error relative to the standard deviation over the samples,
            or, for whole numbers, the share of values that differ.
        fit, note: what the new fit of the calibration head found, and why it deserves little trust (`sparsify.exporters.int8_head.Refit`);
            ``fit`` is None if the head has the values of the program.
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
    fit: Mapping[str, float] | None = None
    note: str = ""

    @property
    def refused(self) -> str:
        """The reasons why the file computes in fp32, if faster int8 forms were rejected or no form could be tried; otherwise empty."""
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
    """Return the fastest model of `quantize` that `sparsify.exporters.acceptance` accepts, with its calibration head fitted again.

    If that is an fp32 model because faster int8 forms were rejected, search for a form with only some of the layers in int8.

    Args:
        models: fp32 models by form: ``dense``, and ``grouped`` if that differs. They may be written without a check here, because each
            fp32 file is proved separately.
        samples: samples for observing ranges, comparing outputs and fitting the head.
        lower: see `Lower`; required if there is a ``grouped`` model.
        written: transformation of a model before it is written.
        batch, threads: batch size and number of threads of the trials.

    Returns:
        The model to write, and the record of how it was chosen.
    """
    tried = quantize(models, samples, lower=lower, written=written, threads=threads)
    acceptance, trials = _Acceptance(samples, written, dict(tried.failed)), [trial for trial, _ in tried.found]
    accepted = next(filter(None, (acceptance.accept(trial, model) for trial, model in tried.found)))
    if acceptance.passed_over and not accepted.trial.integers:
        spared = _spared(models, acceptance, accepted, threads)
        if spared is not None:
            accepted = spared
            trials.insert(0, spared.trial)
    drop_weights(*(model for _, model in tried.found if model is not accepted.model and model not in models.values()))
    logits = accepted.agreements[samples.main]
    result = Int8(
        chosen=accepted.trial,
        trials=tuple(sorted(trials, key=lambda trial: trial.milliseconds)),
        layers=tried.layers,
        batch=batch,
        threads=threads,
        decisions=logits.decisions,
        agreed=logits.agreed,
        largest_error=logits.largest_error,
        head=accepted.head.told,
        figures=accepted.head.figures,
        clear=logits.clear,
        clear_agreed=logits.clear_agreed,
        passed_over=acceptance.passed_over,
        errors={name: agreement.error for name, agreement in accepted.agreements.items()},
        fit=accepted.head.fit,
        note=accepted.head.note,
    )
    return accepted.model, result


@dataclass(frozen=True)
class _Accepted:
    """An accepted trial: its model as it is written, the agreement of each output, and its calibration head."""

    trial: Trial
    model: ir.Model
    agreements: Mapping[str, Agreement]
    head: Refit = field(default_factory=lambda: Refit("kept: the file computes in fp32"))


@dataclass(frozen=True)
class _Acceptance:
    """Accepts models that agree with the program, and records why it rejects others."""

    samples: Samples
    written: Written
    passed_over: dict[str, str]

    def accept(self, trial: Trial, model: ir.Model) -> _Accepted | None:
        """Return the trial if it is accepted, or record why it is not and return None."""
        try:
            agreements = compared(self.samples, values_of(model, self.samples.held_out))
        except ExportError as error:
            if not trial.integers:
                raise
            self.passed_over[trial.name] = str(error)
            return None
        if not trial.integers:
            return _Accepted(trial, self.written(model), agreements)
        if reason := refusal(agreements):
            self.passed_over[trial.name] = reason
            return None
        head = refit_head(model, self.samples)
        final = self.written(model)
        try:
            check_same(model, final, self.samples.tried or self.samples.held_out[:1])
        except ExportError as error:
            self.passed_over[trial.name] = str(error)
            return None
        return _Accepted(trial, final, agreements, head)

    def allows(self, model: ir.Model) -> bool:
        """Return whether a model runs and agrees with the program."""
        try:
            return not refusal(compared(self.samples, values_of(model, self.samples.held_out)))
        except ExportError:
            return False


def compared(samples: Samples, values: Mapping[str, list[Array]]) -> dict[str, Agreement]:
    """Return the agreement of each output with the program, given a model's outputs for the held-out samples, one array per batch."""
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
    """Return the name and the problem of the first output that does not agree; empty if all agree."""
    return next((f"output {name!r}: {one.refused}" for name, one in agreements.items() if one.refused), "")


def _spared(models: Mapping[str, ir.Model], acceptance: _Acceptance, fp32: _Accepted, threads: int) -> _Accepted | None:
    """Return a trial with some layers in int8 that agrees with the program and is faster than ``fp32``; None if none is found."""
    form = fp32.trial.name.partition(",")[0]
    maker, layers = FormMaker(acceptance.samples.calibration), quantizable(models[form], form)
    found: dict[tuple[str, ...], tuple[ir.Model, dict[str, str]]] = {}

    def good(part: tuple[str, ...]) -> bool:
        with maker.recording_failure(str(part)):
            found[part] = form_in_int8(models[form], form, dict.fromkeys(part, "int8"), acceptance.samples.calibration)
        return part in found and acceptance.allows(found[part][0])

    part = agreeing_layers(layers, good)
    if not part:
        return None
    name, (model, shown) = f"{form}, {len(part)} of {len(layers)} layers int8", found[part]
    files = {name: acceptance.written(model), fp32.trial.name: fp32.model}
    timed = times({key: (file, acceptance.samples.timed) for key, file in files.items()}, threads=threads)
    if timed[name] >= timed[fp32.trial.name]:
        acceptance.passed_over[name] = "it agrees with the program, but is slower than fp32"
        return None
    return acceptance.accept(Trial(name, timed[name], shown), model)


def check_bytes(file: Path, before: Mapping[str, list[Array]], samples: Samples, baked: Preprocessing) -> None:
    """Check that a file with uint8 input returns the same outputs for bytes as before its preprocessing was added.

    Args:
        file: path of the written file.
        before: outputs for the held-out samples before the preprocessing was added to the model.
        samples: samples whose held-out inputs are the results of preprocessing bytes.
        baked: the preprocessing in the file.

    Raises:
        ExportError: If an output does not agree.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    stored = [
        {name: baked.stored(torch.from_numpy(x)).numpy() for name, x in feeds.items()} for feeds in samples.held_out
    ]
    wanted = {name: replace(one, values=before[name]) for name, one in samples.wanted.items()}
    reason = refusal(
        compared(replace(samples, wanted=wanted, labels=None), run_over(opened(str(file), options), stored))
    )
    if reason:
        raise ExportError(
            f"the int8 file returns other outputs for bytes than for the same inputs as floats ({reason}). No file was written. Export "
            f"with input_type='float', and please report this model."
        )
