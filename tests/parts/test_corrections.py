"""Corrections by hand and against covariances of stacked gradients."""

from __future__ import annotations

import pytest
import torch

from sparsify.parts.corrections import (
    COMPARISONS,
    Evaluation,
    control_variate,
    gradient_coefficients,
    loss_coefficient,
    paired,
)


def test_a_control_variate_by_hand():
    gradient, expected, old = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5]), torch.tensor([1.5, -0.5])
    assert control_variate(gradient, expected, old, 0.5).tolist() == [0.5, -1.5]
    assert torch.equal(control_variate(gradient, expected, old, 0.0), gradient)


def test_the_coefficient_of_losses_by_hand():
    # Means 7/3 and 2; cov = (4/3 + 5/3) / 2 = 1.5, var = 1.
    assert loss_coefficient(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(1.5)
    assert loss_coefficient(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])) == -1.0


@pytest.mark.parametrize("old", [[0.7, 0.7, 0.7], [0.0, 0.0, 0.0], [1.0, 1.0 + 1e-7, 1.0], [0.7]])
def test_without_spread_there_is_no_coefficient(old):
    assert loss_coefficient(torch.arange(float(len(old))), torch.tensor(old)) is None
    with pytest.raises(ValueError, match="same batches"):
        loss_coefficient(torch.ones(2), torch.ones(3))


def gradients(seed=0, batches=7):
    generator = torch.Generator().manual_seed(seed)
    shared = [torch.randn(12, generator=generator, dtype=torch.float64) for _ in range(batches)]
    new = [{"a": s[:8].view(2, 4) + 5.0, "b": 2 * s[8:]} for s in shared]
    old = [
        {
            "a": s[:8].view(2, 4) + torch.randn(2, 4, generator=generator),
            "b": s[8:] + 0.1 * torch.randn(4, generator=generator),
        }
        for s in shared
    ]
    return new, old


def folded(new, old):
    pairs = {}
    for x, y in zip(new, old, strict=True):
        pairs = paired(pairs, x, y)
    return pairs


def traced(new, old, names):
    """tr Cov(new, old) / tr Cov(old), from the stacked gradients."""
    x, y = (torch.stack([torch.cat([g[n].flatten() for n in names]) for g in side]) for side in (new, old))
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x * y).sum() / (y * y).sum())


def test_coefficients_of_gradients_against_stacked_covariances():
    new, old = gradients()
    pairs = folded(new, old)
    by_layer = gradient_coefficients(pairs, shared=False)
    assert by_layer == {name: pytest.approx(traced(new, old, [name]), rel=1e-6) for name in ("a", "b")}
    assert gradient_coefficients(pairs, shared=True) == {"": pytest.approx(traced(new, old, ["a", "b"]), rel=1e-6)}
    assert pairs["count"] == 7
    torch.testing.assert_close(pairs["new"]["a"], torch.stack([g["a"] for g in new]).mean(0))


def test_no_other_coefficient_leaves_less_variance():
    new, old = gradients(seed=3, batches=20)
    best = gradient_coefficients(folded(new, old), shared=False)["a"]
    expected = torch.stack([g["a"] for g in old]).mean(0)

    def variance(c):
        corrected = torch.stack([control_variate(x["a"], expected, y["a"], c) for x, y in zip(new, old, strict=True)])
        return float(corrected.var(0).sum())

    assert all(variance(best) < variance(best + shift) for shift in (-0.3, -0.05, 0.05, 0.3))
    assert variance(best) < variance(0.0)


def test_gradients_without_spread_have_no_coefficient():
    same = [{"a": torch.tensor([1.0, 2.0])}] * 4
    assert gradient_coefficients(folded(same, same), shared=False) == {"a": None}
    assert gradient_coefficients(folded(same[:1], same[:1]), shared=True) == {"": None}
    assert gradient_coefficients({}, shared=True) == {}


def test_a_comparison_asks_for_no_more_than_it_needs():
    class Asked:
        calls = ()

        def loss(self, at=None):
            self.calls = (*self.calls, "loss")
            return torch.tensor(2.0)

        def evaluate(self, at=None):
            self.calls = (*self.calls, "evaluate")
            return Evaluation(torch.tensor(2.0), {"a": torch.ones(2)}, {})

    batch = Asked()
    for kind in ("loss", "gradient", "layer"):
        compare = COMPARISONS[kind]
        assert compare.solve({}) == {}
        pairs = compare.add({}, batch.evaluate(), compare.old(batch, {}))
        assert set(compare.solve(pairs).values()) == {None}
    assert batch.calls == ("evaluate", "loss", "evaluate", "evaluate", "evaluate", "evaluate")
