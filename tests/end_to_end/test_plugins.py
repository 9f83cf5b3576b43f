"""A package outside the repository adds a method, an allocation, a pass, a task and a calibration head; really installed, in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

YES_OR_NO = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def model():
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))

def data():
    x = torch.randn(600, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] + x[:, 1] * x[:, 2] + torch.randn(600, generator=torch.Generator().manual_seed(1)) > 0.5).long()
    return TensorDataset(x[:450], y[:450]), TensorDataset(x[450:], y[450:])
"""
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, copied and installed by pip into a folder of its own."""
    source, site = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    subprocess.run(["cp", "-r", str(EXAMPLE), str(source)], check=True)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source)], check=True)
    return site


def command(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(site, "-m", "sparsify", *words)


def python(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(ROOT)])
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "400"},
        capture_output=True,
        text=True,
    )


LISTS = ("methods", "passes", "heads", "allocations")
EACH_LIST = """
import sys
import sparsify.cli as cli
for kind in sys.argv[1:]:
    print("#", kind)
    sys.argv = ["sparsify", kind]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, stop.code
"""


def test_what_a_plugin_brings_is_listed_with_its_package(installed: Path) -> None:
    listed = python(installed, "-c", EACH_LIST, *LISTS)
    assert listed.returncode == 0, listed.stderr
    methods, passes, heads, allocations = listed.stdout.split("# ")[1:]
    assert "mest" in methods and "(from sparsify-example)" in methods
    assert "bound-activations" in passes and "(from sparsify-example)" in passes
    (row,) = (line for line in allocations.splitlines() if "by_inputs" in line)
    assert "(from sparsify-example)" in row and "one over the root of a layer's inputs" in row
    (row,) = (line for line in heads.splitlines() if "platt" in line)
    assert "(from sparsify-example)" in row and "binary" in row and "probabilities" in row


def test_the_tests_of_the_plugin_pass_with_one_helper(installed: Path) -> None:
    tests = [str(EXAMPLE / "tests"), "-c", os.devnull, "--rootdir", str(EXAMPLE / "tests"), "-p", "no:cacheprovider"]
    tests += ["-p", "no:logging", "-p", "tests.end_to_end.fewer_cases"]  # for the time
    result = python(installed, "-m", "pytest", "-q", *tests)
    assert result.returncode == 0, result.stdout
    assert "5 passed" in result.stdout


def test_a_run_trains_with_a_plugins_method_and_allocation_and_calibrates_with_its_head(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "yes.py").write_text(YES_OR_NO)
    words = [
        "run",
        f"{tmp_path}/yes.py:model",
        "--data",
        f"{tmp_path}/yes.py:data",
        "--task",
        "binary",
        "--epochs",
        "2",
    ]
    words += [
        "--method",
        "mest",
        "--set",
        "method.options.allocation=by_inputs",
        "--set",
        "method.options.update_every=5",
    ]
    result = command(installed, *words, "--set", "export.calibrator=platt", "--out", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/model.onnx").is_file()
    assert 'name = "mest"' in (tmp_path / "run/recipe.toml").read_text()
    calibration = json.loads((tmp_path / "run/metrics.json").read_text())["model"]["calibration"]
    assert calibration["kind"] == "platt" and calibration["nll_after"] < calibration["nll_before"]
    page = (tmp_path / "run/report.html").read_text()
    assert "platt" in page
    (curves,) = (part for part in page.split("<svg")[1:] if "Loss and validation" in part.split(">")[0])
    assert curves.split("</svg>")[0].count("<path") > 5, "drawn, as plots of runs in the tests' own process are not"


def test_a_plugin_that_fails_is_said_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no such device')\n")
    info = tmp_path / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sparsify.plugins]\nbroken = broken_plugin\n")
    listed = command(tmp_path, "methods")
    assert listed.returncode == 0 and "rigl" in listed.stdout
    assert "broken-plugin" in listed.stderr and "no such device" in listed.stderr
    asked = command(tmp_path, "run", "--data", "digits", "--method", "mine", "--out", str(tmp_path / "run"))
    assert asked.returncode == 2
    assert "Not loaded: plug-in broken (RuntimeError: no such device)" in " ".join(asked.stderr.split())
    assert "Traceback" not in asked.stderr
    assert not (tmp_path / "run").exists()
