"""`sparsify run` with passes of the recipe: a spiking network is trained, calibrated, proved in ONNX Runtime and continued."""

from __future__ import annotations

import json
import re

import pytest

import sparsify as sp
from sparsify.errors import PassError, RecipeError
from sparsify.runs.recipe import parse_recipe
from tests.end_to_end.test_command import SHORT, sparsify

PASSES = "model.passes=spiking{steps=3 learn=leak}"


def test_a_spiking_network_is_trained_and_proved(capsys, tmp_path):
    out = tmp_path / "a"
    given = ("run", "--method", "per-step(rigl)", "--out", out, *SHORT, "--set", PASSES, "--head", "lac:0.9")
    code, _, err = sparsify(capsys, *given)
    assert code == 0, err
    report = json.loads((out / "metrics.json").read_text())
    assert report["model"]["accuracy"] > 0.3
    spikes = report["model"]["spikes"]
    assert 0 < spikes["rate"] < 1 and [len(layer["rates"]) for layer in spikes["layers"]] == [3, 3, 3]
    assert 0 < spikes["accumulates"] < spikes["macs"] * 100
    page = (out / "report.html").read_text()
    assert "neurons that fire in a step, mean" in page and "saturated" in page
    program = sp.Program.load(out / "program.sparsify")
    assert len(re.findall(r" = lif\(", program.text())) == 2 * 3, "three layers in two phases"
    leaks = [value.item() for name, value in program.named_parameters() if name.endswith("leak")]
    assert len(leaks) == 3 and all(leak != 0.5 for leak in leaks)
    assert 'passes = "spiking{steps=3 learn=leak}"' in (out / "recipe.toml").read_text()

    again = tmp_path / "b"
    code, _, err = sparsify(
        capsys, "run", out / "program.sparsify", "--method", "rigl", "--out", again, *SHORT, "--set", "train.lr=0.01"
    )
    assert code == 0, err
    code, _, err = sparsify(
        capsys, "run", out / "program.sparsify", "--method", "rigl", "--out", tmp_path / "c", *SHORT, "--set", PASSES
    )
    assert code == 2 and "has layers of neurons already" in err and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("passes", "error", "message"),
    [
        ("spikin", PassError, "there is no pass 'spikin'. Nearest: spiking"),
        ("spiking{steps=0}", PassError, "steps should be in"),
        ("fold-masks", RecipeError, "fold-masks ends training. Leave it out"),
        ("spiking{", PassError, "cannot read"),
    ],
)
def test_passes_are_checked_before_anything_is_loaded(passes, error, message):
    with pytest.raises(error) as found:
        parse_recipe(None, {"passes": passes})
    assert message in str(found.value)


def test_per_step_needs_a_spiking_network(capsys, tmp_path):
    code, _, err = sparsify(capsys, "run", "--method", "per-step(set)", "--out", tmp_path / "a", *SHORT)
    assert code == 2 and "averages no logits [N, K] over steps" in err and not (tmp_path / "a").exists()
