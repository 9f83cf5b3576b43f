"""Exported programs become models: names, outputs, gradients; and the one mode they were exported in is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import LoadError
from sparsify.ir import TraceWarning, trace
from sparsify.loading import digits_cnn, load_model
from tests.cases import digits
from tests.loading.conftest import export_to


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def test_an_exported_program_is_the_model_with_its_names(archive):
    path, model = archive
    with pytest.warns(
        TraceWarning, match="exported in eval mode: its batch norm will stay in eval mode during training"
    ):
        loaded = load_model(str(path))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    program = trace(loaded, (digits(2)[0],))
    x = digits(5)[0]
    torch.testing.assert_close(program.eval()(x), model.eval()(x))
    torch.testing.assert_close(program.train()(x), model.eval()(x))
    assert [site.name for site in program.maskable()] == ["0.weight", "3.weight", "8.weight", "10.weight"]


def test_without_batch_norm_and_dropout_there_is_one_mode_and_gradients_are_those_of_the_model(tmp_path):
    model = small()
    program = trace(load_model(str(export_to(tmp_path / "m.pt2", model))), (digits(2)[0],)).train()
    x, y = digits(9)
    nn.functional.cross_entropy(program(x), y).backward()
    nn.functional.cross_entropy(model(x), y).backward()
    expected = dict(model.named_parameters())
    for name, parameter in program.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.Dropout(0.5)])
def test_an_export_in_training_mode_is_refused(tmp_path, layer):
    with pytest.raises(LoadError, match=r"exported in training mode.*after model.eval\(\)"):
        load_model(str(export_to(tmp_path / "m.pt2", nn.Sequential(layer, small()))))


def test_an_export_for_one_batch_size_is_refused(tmp_path):
    with pytest.raises(LoadError, match=r"with a fixed batch size \(2\).*dynamic_shapes"):
        load_model(str(export_to(tmp_path / "m.pt2", small(), dynamic=False)))


@pytest.mark.filterwarnings("ignore:.*exported in eval mode")
def test_weights_go_into_an_exported_program(archive, tmp_path):
    torch.manual_seed(9)
    state = digits_cnn().state_dict()
    torch.save(state, tmp_path / "w.pt")
    loaded = load_model(str(archive[0]), weights=tmp_path / "w.pt").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in state.items())
