"""The example made for speed: trained with groups, exported as small dense layers, and compared with `sparsify bench`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.end_to_end.test_command import sparsify

MODEL = f"{Path(__file__).parents[2] / 'examples' / 'cifar.py'}:wide_resnet"


@pytest.fixture
def images(tmp_path):
    """Digits as 32 x 32 colour images."""
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    x, y = np.stack([pixels] * 3, axis=3), digits.target
    np.savez(tmp_path / "d.npz", x_train=x[:160], y_train=y[:160], x_test=x[160:200], y_test=y[160:200])
    return tmp_path / "d.npz"


def test_the_files_of_a_run_show_the_speed(capsys, tmp_path, images):
    out = tmp_path / "a"
    options = ["--pattern", "grouped:32:learned", "--sparsity", "0.9", "--epochs", "2", "--baseline"]
    settings = [
        "export.form=auto",
        "method.name=rigl",
        "method.options.dense_until=0.3",
        "train.threads=1",
        "train.batch_size=16",
    ]
    settings = [part for setting in settings for part in ("--set", setting)]
    code, _, err = sparsify(capsys, "run", MODEL, "--data", images, *options, *settings, "--out", out)
    assert code == 0, err
    report = json.loads((out / "metrics.json").read_text())["model"]
    assert abs(report["density"] - 0.1) < 0.001 and report["parity"]["ok"]
    assert sum(form == "grouped" for form in report["forms"].values()) >= 8
    code, _, err = sparsify(capsys, "bench", out / "dense.onnx", out / "model.onnx", "--json", tmp_path / "b.json")
    assert code == 0, err
    dense, sparse = json.loads((tmp_path / "b.json").read_text())["timings"]
    assert sparse["bytes"] < 0.25 * dense["bytes"]
    assert sparse["interval"][0] <= sparse["speedup"] <= sparse["interval"][1]


@pytest.mark.parametrize("method", ["rigl", "gmp"])
def test_a_density_below_the_floors_is_refused_before_training(capsys, tmp_path, images, method):
    asked = ["--pattern", "grouped:32", "--sparsity", "0.97", "--method", method]
    code, _, err = sparsify(capsys, "run", MODEL, "--data", images, *asked, "--out", tmp_path / "a")
    text = " ".join(err.split())
    assert code == 2 and "Traceback" not in text and "loss" not in text
    assert "blocks.2.conv1.weight" in text and "The lowest density that works is 0.08" in text and "keep-dense" in text
