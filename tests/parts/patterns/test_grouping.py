"""Which outputs share a group: by hand, against all partitions, never worse than the given order."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from sparsify.parts.patterns.grouping import group_outputs, kept_score, order_by_inputs, shared_inputs


def test_outputs_that_read_the_same_inputs_are_put_together():
    scores = torch.tensor([[9.0, 9, 0, 0], [0, 0, 9, 9], [8, 9, 1, 0], [0, 1, 9, 8]])
    assert group_outputs([scores], rows=2, kept=[2]).tolist() == [0, 2, 1, 3]
    assert kept_score(scores, torch.arange(4), rows=2, kept=2) == pytest.approx(18 + 20)
    assert kept_score(scores, torch.tensor([0, 2, 1, 3]), rows=2, kept=2) == pytest.approx(35 + 35)


def best_of_all(scores, rows, kept):
    outputs, best = range(len(scores)), 0.0
    for group in itertools.combinations(outputs, rows):
        order = [*group, *(o for o in outputs if o not in group)]
        best = max(best, kept_score(scores, torch.tensor(order), rows=rows, kept=kept))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_two_groups_come_close_to_the_best_partition(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(8, 6, generator=generator) ** 3
    order = group_outputs([scores], rows=4, kept=[2])
    found, best = kept_score(scores, order, rows=4, kept=2), best_of_all(scores, 4, 2)
    assert found >= 0.88 * best
    assert found >= kept_score(scores, torch.arange(8), rows=4, kept=2)


def test_hidden_clusters_are_found_again():
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(8, 128, generator=generator) < 0.15
    owner = torch.arange(256) % 8
    scores = torch.rand(256, 128, generator=generator) * (0.2 + centres[owner])
    shuffled = torch.randperm(256, generator=generator)
    order = group_outputs([scores[shuffled]], rows=32, kept=[20])
    truth = kept_score(scores, owner.argsort(stable=True), rows=32, kept=20)
    assert kept_score(scores[shuffled], order, rows=32, kept=20) > 0.97 * truth
    assert sorted(order.tolist()) == list(range(256))
    assert torch.equal(order, group_outputs([scores[shuffled]], rows=32, kept=[20]))


def test_a_trained_layer_keeps_more_of_its_magnitude():
    data = load_digits()
    network = MLPClassifier((128,), max_iter=300, random_state=0, early_stopping=True)
    network.fit(data.data / 16, data.target)
    scores = torch.tensor(network.coefs_[0].T).abs()
    given = kept_score(scores, torch.arange(128), rows=16, kept=8)
    assert kept_score(scores, group_outputs([scores], rows=16, kept=[8]), rows=16, kept=8) > 1.05 * given


def test_sizes_that_do_not_fit_and_nan_are_refused():
    with pytest.raises(ValueError, match="cannot form groups of 3 outputs"):
        group_outputs([torch.ones(8, 4)], rows=3, kept=[1])
    with pytest.raises(ValueError, match="cannot form groups"):
        group_outputs([torch.ones(8, 4)], rows=4, kept=[5])
    with pytest.raises(ValueError, match="NaN"):
        group_outputs([torch.full((8, 4), torch.nan)], rows=4, kept=[2])
    assert group_outputs([torch.ones(8, 4)], rows=8, kept=[2]).tolist() == list(range(8))


def test_layers_that_share_their_groups_are_weighed_together():
    first = torch.tensor([[5.0, 0], [5, 0], [0, 5], [0, 5]])
    second = torch.tensor([[9.0, 0], [0, 9], [9, 0], [0, 9]])
    assert group_outputs([first], rows=2, kept=[1]).tolist() == [0, 1, 2, 3]
    assert group_outputs([first, second], rows=2, kept=[1, 1]).tolist() == [0, 2, 1, 3]
    assert group_outputs([first, second / 9], rows=2, kept=[1, 1]).tolist() == [0, 1, 2, 3]


def used(*rows):
    return torch.tensor([[int(c) for c in row] for row in rows]).bool()


def test_an_order_by_the_inputs_that_are_read():
    assert order_by_inputs(used("110", "011", "110", "011"), 2).tolist() == [0, 2, 1, 3]
    assert order_by_inputs(used("110", "011", "110", "011"), 4) is None
    assert order_by_inputs(used("110", "011", "110", "101"), 2) is None
    assert order_by_inputs(used("110", "110", "110", "110"), 2).tolist() == [0, 1, 2, 3]


def test_outputs_that_read_less_go_where_they_are_needed():
    # Output 0 reads nothing and fits both; output 3 fits 110 alone.
    assert order_by_inputs(used("000", "110", "011", "100", "011", "011"), 2).tolist() == [0, 2, 1, 3, 4, 5]


def test_the_largest_groups_are_found_without_being_told():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    reads = used(*["1100"] * 4, *["0110"] * 4, *["0011"] * 4)[order]
    rows, found = shared_inputs(reads)
    assert rows == 4 and all(len(reads[found][i : i + 4].unique(dim=0)) == 1 for i in (0, 4, 8))
    assert shared_inputs(used("10", "10")) is None  # one group
    assert shared_inputs(torch.eye(6).bool()) is None
