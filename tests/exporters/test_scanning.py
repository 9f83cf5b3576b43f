"""Spiking networks as files: all steps at once, unrolled, in a Scan, and one step per call, each run in ONNX Runtime."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import ExportError, PassError
from sparsify.exporters.scanning import STEPS
from sparsify.ir.channels import channel_sets
from sparsify.ir.single_step import first_states, single_step, state_names
from tests.end_to_end.test_command import sparsify
from tests.passes.test_spiking import Net, X, spiking


def sparse(steps: int = 5, heads: str = "attach-calibration-head"):
    return spiking(
        Net(), f"insert-masks{{density=0.4}} | spiking{{steps={steps} reset=hard learn=both}} | {heads}"
    ).eval()


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def through(path, x):
    """Run a file of one step for as many steps as it says, with zeros as the first states; returns the last outputs by name."""
    run = session(path)
    said = run.get_modelmeta().custom_metadata_map
    names = [value.name for value in run.get_outputs()]
    shapes = {value.name: value.shape[1:] for value in run.get_inputs()}
    states = {name: np.zeros((len(x), *shapes[name]), np.float32) for name in said["states"].split()}
    found: dict[str, np.ndarray] = {}
    for _ in range(int(said["steps"])):
        found = dict(zip(names, run.run(None, {"x": x, **states}), strict=True))
        states = {name: found[f"next_{name}"] for name in states}
    return found


@pytest.mark.parametrize("steps", [form for form in STEPS if form != "single"])
def test_a_file_of_all_steps_agrees_at_every_batch(steps, tmp_path):
    program = sparse()
    result = sp.export(program, tmp_path / "net.onnx", inputs=X[:9], steps=steps)
    assert result.parity.decisions > 0 and result.positions == 54 + 6 + 324 + 960
    run = session(tmp_path / "net.onnx")
    for count in (1, 2, 33):
        wanted = program.outputs(X[:count])
        for value, made in zip(run.get_outputs(), run.run(None, {"x": X[:count].numpy()}), strict=True):
            assert torch.allclose(torch.from_numpy(made), wanted[value.name], atol=1e-5), value.name


def test_forms_have_the_nodes_that_they_say(tmp_path):
    counts = {}
    for steps in STEPS:
        sp.export(sparse(6), tmp_path / f"{steps}.onnx", inputs=X[:9], steps=steps)
        graph = onnx.load(tmp_path / f"{steps}.onnx").graph
        bodies = [
            attribute.g
            for node in graph.node
            if node.op_type == "Scan"
            for attribute in node.attribute
            if attribute.HasField("g")
        ]
        counts[steps] = [Counter(node.op_type for node in part.node) for part in (graph, *bodies)]
        weights = [tuple(tensor.dims) for tensor in graph.initializer if tuple(tensor.dims) == (6, 6, 3, 3)]
        assert len(weights) == 1, f"{steps} has the weight once"
    assert counts["whole"][0]["Conv"] == 3 and len(counts["whole"]) == 1
    assert counts["unrolled"][0]["Conv"] == 2 + 6, "the stem and the shortcut are computed once"
    assert counts["scan"][0]["Conv"] == 2 and counts["scan"][1]["Conv"] == 1
    assert counts["single"][0]["Conv"] == 3 and counts["single"][0]["Atan"] == 0, "the surrogate is not in the file"


def test_single_steps_add_up_to_the_program(tmp_path):
    program = sparse()
    sp.export(program, tmp_path / "step.onnx", inputs=X[:9], steps="single")
    for count in (1, 17):
        found, wanted = through(tmp_path / "step.onnx", X[:count].numpy()), program.outputs(X[:count])
        assert wanted.keys() < found.keys()
        for name, value in wanted.items():
            assert torch.allclose(torch.from_numpy(found[name]), value, atol=1e-5), name


def test_a_single_step_in_python_adds_up_too():
    program = sp.Pipeline.parse("fold-masks")(sparse())
    step, x = single_step(program), X[:7]
    states = first_states(step, [x])
    with torch.no_grad():
        for _ in range(5):
            found = step.outputs(x, *states)
            states = [found[f"next_{name}"] for name in state_names(step)]
        assert torch.allclose(found["logits"], program(x), atol=1e-6)
    assert [tuple(state.shape) for state in states] == [(7, 6, 8, 8), (7, 6, 8, 8), (7, 10)]
    assert "lif(" not in step.text() and program.text().count("lif(") == 4, "the program stays as it is"


def test_the_command_writes_a_step(capsys, tmp_path):
    program = spiking(Net(), "spiking{steps=3}").eval()
    program.save(tmp_path / "p.sparsify")
    out = tmp_path / "step.onnx"
    code, _, err = sparsify(
        capsys, "export", tmp_path / "p.sparsify", "--data", "digits", "--steps", "single", "--out", out
    )
    assert code == 0, err
    found = through(out, X[:5].numpy())
    assert torch.allclose(torch.from_numpy(found["logits"]), program(X[:5]), atol=1e-5)
    code, _, err = sparsify(capsys, "export", tmp_path / "p.sparsify", "--steps", "twice", "--out", tmp_path / "b.onnx")
    assert code == 2 and "steps should be one of whole, unrolled, scan, single, found 'twice'" in err
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("steps", ["unrolled", "scan", "single"])
def test_other_networks_have_no_steps(steps, tmp_path):
    program = sp.trace(Net(), (X[:4],)).eval()
    with pytest.raises((ExportError, PassError), match="is no spiking network"):
        sp.export(program, tmp_path / "net.onnx", inputs=X[:9], steps=steps)
    assert not any(tmp_path.iterdir())


def test_masks_are_folded_before_a_single_step_is_made():
    with pytest.raises(PassError, match="fold-masks"):
        single_step(sparse())


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.second(self.first(4 * x)).view(x.size(0), -1))


@pytest.mark.parametrize("steps", ["whole", "unrolled", "scan"])
def test_learned_groups_are_ordered_and_written_as_groups_after_neurons(steps, tmp_path):
    """The order of channels is followed through neurons, and through a view to the size of a batch of all steps."""
    given = "insert-masks{pattern=grouped:8:learned density=0.25 keep-dense=last.weight}"
    program = spiking(Wide(), f"spiking | {given}").eval()
    free = [channels for channels in channel_sets(program) if channels.pinned is None]
    assert [(channels.writers, channels.readers) for channels in free] == [
        (["first.1.weight"], [("second.0.weight", 1)]),
        (["second.0.weight"], [("last.weight", 1)]),
    ]
    result = sp.export(program, tmp_path / "net.onnx", inputs=X[:9], steps=steps, form="grouped")
    assert result.forms["first.1.weight"] == result.forms["second.0.weight"] == "grouped"
    run = session(tmp_path / "net.onnx")
    (made,) = run.run(["logits"], {run.get_inputs()[0].name: X.numpy()})
    assert torch.allclose(torch.from_numpy(made), program(X), atol=1e-5)
