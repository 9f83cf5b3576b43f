"""The temperature of masked inputs: plain at the limit, rising with the ratio, finite where the plain one is not, and alone in the file."""

from __future__ import annotations

import functools
import json

import onnx
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.calibration import evaluate, fit, kind_of
from sparsify.errors import RecipeError
from sparsify.figures import metrics
from sparsify.heads import HeldOut, MaskedTemperature, Temperature, named
from sparsify.heads.masked import KEPT, RATIOS
from sparsify.ir.heads import head_metadata
from sparsify.parts.samples import TensorSamples
from sparsify.runs.preflight import heads
from sparsify.runs.recipe import parse_recipe
from sparsify.tasks import Classification
from tests.cases import digits

BUFFER = "calibration.masked_temperature"


@functools.cache
def few(steps=30):
    """A network that is right about the 50 digits it was trained on; these digits, and all others."""
    x, y = digits(1797)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    chosen = torch.cat([order[y[order] == number][:5] for number in range(10)])
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    rest = torch.ones(1797, dtype=torch.bool).index_fill(0, chosen, value=False)
    return sp.trace(model, (x[:2],)).eval(), TensorSamples(x[chosen], y[chosen]), TensorSamples(x[rest], y[rest])


def fitted(program, samples, spec, **options):
    program = sp.Pipeline.parse(f"attach-calibration-head{{kind={spec}}}")(program.clone()).eval()
    return program, fit(program, samples, **options)


def some(samples, count, first=0):
    return TensorSamples(samples.inputs[first : first + count], samples.targets[first : first + count])


def test_without_masks_it_is_the_plain_temperature_bit_for_bit():
    program, _, rest = few()
    plain, log = fitted(program, some(rest, 200), "temperature")
    for spec in ("masked-temperature:1e-12:1", "masked-temperature:1e-12:3"):
        masked, other = fitted(program, some(rest, 200), spec)
        assert other.figures["temperature_without_masks"] == log.temperature
        same = torch.equal(masked.tensor(BUFFER), plain.tensor("calibration.temperature"))
        assert same and other.temperature == pytest.approx(log.temperature, rel=1e-12)
        assert torch.equal(masked.outputs(rest.inputs)["probabilities"], plain.outputs(rest.inputs)["probabilities"])
    assert fitted(program, some(rest, 200), "masked-temperature:1e-12:1")[1].temperature == log.temperature


def test_where_all_samples_are_right_it_has_a_temperature_that_rises_with_the_ratio():
    """The case of the method: directions as of Zhu et al. 2023, figures within 30 % of 0.37, 0.67, 0.78, 0.85 and 0.92."""
    program, known, rest = few()
    log = fitted(program, known, "temperature")[1]
    assert log.note is not None and "classify all held-out data correctly" in log.note and log.temperature == 1
    logits = evaluate(program, rest)["logits"]
    wrong = 1 - metrics.accuracy(logits.softmax(1), rest.targets)  # the ECE of a temperature of 0
    found, errors = list[float](), list[float]()
    for ratio in (0.1, 0.3, 0.5, 0.7, 0.9):
        _, log = fitted(program, known, f"masked-temperature:{ratio}:20")
        assert log.note is None and "temperature_without_masks" not in log.figures
        found.append(log.temperature)
        errors.append(metrics.ece((logits / log.temperature).softmax(1), rest.targets, bins=10))
    assert found == sorted(found) and found == pytest.approx([0.37, 0.67, 0.78, 0.85, 0.92], rel=0.3)
    assert errors == sorted(errors, reverse=True) and max(errors) < wrong


def test_the_fit_says_what_it_found():
    program, known, _ = few()
    _, log = fitted(program, known, "masked-temperature")
    assert log.kind == "masked-temperature" and log.figures["ratio"] == 0.3 and log.figures["rounds"] == 20
    assert log.figures["temperature"] == log.temperature
    assert (log.figures["nll_before"], log.figures["nll_after"]) == pytest.approx(
        (log.nll_before, log.nll_after), rel=1e-6
    )
    assert log.figures["masked_nll_after"] < log.figures["masked_nll_before"]
    assert json.dumps(log.to_dict()["figures"])
    assert fitted(program, known, "masked-temperature")[1] == log  # the same masks each time


def test_more_rounds_and_other_batches_change_it_by_noise_alone():
    program, known, _ = few()
    base = fitted(program, known, "masked-temperature:0.3:40")[1].temperature
    for found in (
        fitted(program, known, "masked-temperature:0.3:20"),
        fitted(program, known, "masked-temperature:0.3:40", batch_size=7),
    ):
        assert found[1].temperature == pytest.approx(base, rel=0.1)


def test_a_chosen_ratio_is_that_of_two_folds_on_held_out_samples():
    program, known, rest = few()
    held = some(rest, 60)
    log = fitted(program, held, "masked-temperature:0:5")[1]
    assert log.kind == "masked-temperature" and log.figures["ratio"] in RATIOS
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    inputs, targets, logits = held.inputs, held.targets, evaluate(program, held)["logits"]
    scores = {}
    for ratio in RATIOS:
        total = 0.0
        for a, b in (order.tensor_split(2), order.tensor_split(2)[::-1]):
            generator, forms = torch.Generator().manual_seed(0), []
            for _ in range(5 if ratio else 1):
                x = inputs * (torch.rand(inputs.shape, generator=generator) >= ratio)
                forms.append(evaluate(program, TensorSamples(x, targets))["logits"][a])
            try:
                t = (
                    Temperature()
                    .fit(HeldOut(torch.cat(forms), targets[a].repeat(len(forms)), Classification()), {})
                    .values["temperature"]
                )
            except ValueError:
                total = float("inf")
                break
            total += len(b) * metrics.nll((logits[b] / t).softmax(1), targets[b])
        scores[ratio] = total
    assert log.figures["ratio"] == min(scores, key=scores.get)
    chosen = fitted(
        program, held, f"masked-temperature:{log.figures['ratio']}:5" if log.figures["ratio"] else "temperature"
    )[1]
    assert log.temperature == chosen.temperature
    assert (
        fitted(program, known, "masked-temperature:0:5")[1].figures["ratio"] > 0
    )  # these determine no plain temperature


def test_the_program_gets_masked_inputs_after_they_are_normalised():
    program, known, _ = few()
    shifted = TensorSamples(known.inputs + 0.5, known.targets, mean=torch.tensor([0.5]), std=torch.tensor([1.0]))
    first, second = (fitted(program, samples, "masked-temperature")[1].temperature for samples in (known, shifted))
    assert first == pytest.approx(second, rel=1e-4)


class Looked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.scale = nn.Embedding(12, 4), nn.Linear(3, 4)

    def forward(self, ids, extra=None):
        found = self.table(ids).sum(1)
        return found if extra is None else found + self.scale(extra)


def test_tokens_alone_are_refused_with_a_note_and_beside_floats_stay():
    torch.manual_seed(0)
    ids, y, extra = torch.randint(0, 12, (60, 5)), torch.arange(60) % 4, torch.rand(60, 3)
    program = sp.trace(Looked(), (ids[:2],)).eval()
    found, log = fitted(program, TensorSamples(ids, y), "masked-temperature")
    assert log.temperature == 1 and float(found.tensor(BUFFER)) == 1
    assert log.note.startswith(
        "not fitted, so the probabilities are those of the model as trained: the inputs [60, 5] are whole numbers"
    )
    assert fitted(program, TensorSamples(ids, y), "masked-temperature:0")[1].note == log.note
    both = sp.trace(Looked(), (ids[:2], extra[:2])).eval()
    answers = torch.multinomial(evaluate(both, TensorSamples((ids, extra), y))["logits"].softmax(1), 1)[:, 0]
    log = fitted(both, TensorSamples((ids, extra), answers), "masked-temperature")[1]
    assert log.figures["temperature"] == log.temperature != 1


def test_without_a_program_to_run_it_is_not_fitted_and_a_refit_keeps_it():
    held = HeldOut(torch.eye(4).double(), torch.arange(4), Classification())
    with pytest.raises(ValueError, match="reads masked inputs, and the program cannot be run on them"):
        MaskedTemperature().fit(held, {})
    before = {"masked_temperature": torch.tensor(2.5).double()}
    kept = MaskedTemperature().refit(held, before, held.output)
    assert (kept.values, kept.note) == (before, KEPT)
    assert MaskedTemperature().told(before, kept) == f"masked-temperature 2.5000 {KEPT}"


def test_a_file_holds_the_temperature_and_no_mask(tmp_path):
    program, known, rest = few()
    program, log = fitted(program, known, "masked-temperature:0.5:20")
    program.save(tmp_path / "p.sparsify")
    loaded = sp.Program.load(tmp_path / "p.sparsify").eval()
    assert kind_of(loaded) == "masked-temperature:0.5:20"
    model = onnx.load(sp.export(loaded, tmp_path / "m.onnx", inputs=[rest.inputs[:300]]).path)
    plain, _ = fitted(few()[0], some(rest, 100), "temperature")
    other = onnx.load(sp.export(plain, tmp_path / "plain.onnx", inputs=[rest.inputs[:300]]).path)
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in other.graph.node]
    stored = [one for one in model.graph.initializer if "masked_temperature" in one.name]
    assert [float(onnx.numpy_helper.to_array(one).reshape(())) for one in stored] == [
        pytest.approx(log.temperature, rel=1e-6)
    ]
    assert {p.key: p.value for p in model.metadata_props}["calibration"] == "masked-temperature:0.5:20"


def test_its_buffer_is_its_own_and_it_replaces_a_temperature():
    program, _, rest = few()
    plain, _ = fitted(program, some(rest, 100), "temperature")
    found = sp.Pipeline.parse("attach-calibration-head{kind=masked-temperature:0.3 replace=true}")(plain).eval()
    assert [name for name, _ in found.named_buffers() if "calibration" in name] == [BUFFER]
    assert head_metadata(found)["calibration"] == "masked-temperature:0.3:20"


@pytest.mark.parametrize(
    ("spec", "words"),
    [("masked-temperature:1", "in (0, 1), or 0 to choose it; found 1"), ("masked-temperature:-0.1", "found -0.1"),
     ("masked-temperature:0.3:0", "at least 1; found 0"), ("masked-temperature:x", "could not convert"),
     ("masked-temperature:0.3:20:1", "Leave out what follows")],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(spec, words):
    for read in (named, lambda text: parse_recipe(None, {"calibrator": text})):
        with pytest.raises(RecipeError) as caught:
            read(spec)
        assert words in str(caught.value)


def test_a_recipe_names_it_with_its_values_and_a_saved_program_keeps_them():
    program, *_ = few()
    recipe = parse_recipe(None, {"calibrator": "masked-temperature:0.5"})
    (step,) = heads(recipe, program)
    assert step.kind == "masked-temperature:0.5:20"
    program = sp.Pipeline((step,))(program.clone()).eval()
    for text in ("auto", "masked-temperature:0.5", "masked-temperature:0.5:20"):
        assert heads(parse_recipe(None, {"calibrator": text}), program) == ()
    (other,) = heads(parse_recipe(None, {"calibrator": "masked-temperature"}), program)
    assert (other.kind, other.replace) == ("masked-temperature:0.3:20", True)
