"""State between calls is refused where outputs depend on it, and attributes are left as they were."""

from __future__ import annotations

import pytest
import snntorch
import torch
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir import trace
from tests.cases import digits

X, _ = digits(6)


class Remembering(nn.Module):
    """Adds to its output what ``remember`` made of the state and the last output."""

    def __init__(self, remember, start=None) -> None:
        super().__init__()
        self.fc, self.remember, self.state = nn.Linear(64, 10), remember, start

    def forward(self, x):
        y = self.fc(x.flatten(1))
        return self.remember(self, y)


def accumulated(m, y):
    m.state = y if m.state is None else m.state + y
    return m.state


def in_a_list(m, y):
    m.state = [y + (m.state[0] if m.state else 0)]
    return m.state[0]


def noted(m, y):
    m.state = y
    return y


def restarted(m, y):
    m.state = torch.zeros_like(y)
    for _ in range(3):
        m.state = m.state / 2 + y
    return m.state


@pytest.mark.parametrize(("rule", "start"), [(accumulated, None), (in_a_list, ())])
def test_outputs_that_depend_on_the_call_before(rule, start):
    model = Remembering(rule, start)
    with pytest.raises(TraceError, match=r"Remembering keeps a state between calls, in 'state': a second call"):
        trace(model, (X,))
    assert model.state == start


@pytest.mark.parametrize("rule", [noted, restarted])
@pytest.mark.parametrize("called", [False, True])
def test_what_is_only_noted_or_starts_anew_is_traced(rule, called):
    model = Remembering(rule)
    if called:
        model(X)
    before = model.state
    program = trace(model, (X,))
    assert model.state is before and program.dynamic_batch
    assert torch.equal(program(X[:4]), model(X[:4]))


def test_an_attribute_that_forward_adds_is_taken_away():
    def adds(m, y):
        m.extra = y
        return y

    model = Remembering(adds)
    trace(model, (X,))
    assert not hasattr(model, "extra")


def test_random_numbers_are_not_taken_for_a_state():
    def dropped(m, y):
        m.state = nn.functional.dropout(y, 0.5, m.training)
        return m.state

    trace(Remembering(dropped), (X,))


class Hidden(nn.Module):
    def __init__(self, *, fresh: bool) -> None:
        super().__init__()
        self.fc, self.neuron, self.fresh = nn.Linear(64, 10), snntorch.Leaky(beta=0.9, init_hidden=True), fresh

    def forward(self, x):
        if self.fresh:
            self.neuron.reset_mem()
        current = self.fc(4 * x.flatten(1))
        return sum(self.neuron(current) for _ in range(3))


def test_hidden_states_of_snntorch():
    with pytest.raises(
        TraceError, match=r"keeps a state between calls, in 'neuron\.reset', 'neuron\.mem'.*init_hidden=False"
    ):
        trace(Hidden(fresh=False), (X,))
    program = trace(Hidden(fresh=True), (X,))
    assert program.dynamic_batch and torch.equal(program(X), program(X))
