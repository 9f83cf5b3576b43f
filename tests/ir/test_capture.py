"""Why a model cannot be exported: the cause that is true, and what to do."""

from __future__ import annotations

import pytest
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir import trace
from tests.cases import digits


@pytest.mark.parametrize("place", ["1", "2.0"])
def test_a_batch_norm_without_momentum_is_named(place, capsys):
    norm = nn.BatchNorm1d(10, momentum=None)
    after = (norm,) if place == "1" else (nn.ReLU(), nn.Sequential(norm))
    model = nn.Sequential(nn.Linear(64, 10), *after)
    with pytest.raises(TraceError, match=f"'{place}' has momentum=None.*momentum=0.1"):
        trace(model, (digits(6)[0].flatten(1),))
    assert capsys.readouterr().err == ""
    norm.momentum = 0.1
    trace(model, (digits(6)[0].flatten(1),))


def test_other_causes_are_not_blamed_on_it():
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(64, 10), nn.BatchNorm1d(10, momentum=None)

        def forward(self, x):
            y = self.fc(x)
            return y if y.sum() > 0 else self.norm(y)

    with pytest.raises(TraceError, match=r"control flow that depends on tensor values"):
        trace(Branched(), (digits(6)[0].flatten(1),))


def test_a_parameter_changed_in_place_is_said():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            self.fc.weight.mul_(0.9)
            return self.fc(x.flatten(1))

    with pytest.raises(TraceError, match="changes a parameter in place, which cannot be trained"):
        trace(Scaled(), (digits(6)[0],))
