"""Scores of out-of-distribution inputs: cases worked by hand, and slow oracles for what is fitted to features."""

from __future__ import annotations

import math

import pytest
import torch

import sparsify as sp
from sparsify.errors import RecipeError
from sparsify.heads import HEADS, HeldOut, named, run
from sparsify.heads.base import FEATURES
from sparsify.parts import feature_statistics as statistics
from sparsify.tasks import Classification

Z = torch.tensor([[2, 1, 0.1], [0.5, 2.5, -0.5], [1, 1.2, 0.8], [-1, 0, 3]], dtype=torch.float64)
G = torch.Generator().manual_seed(0)
CENTRES = 3 * torch.randn(4, 12, generator=G, dtype=torch.float64)
LABELS = torch.arange(400) % 4
FEATURES_IN = (CENTRES[LABELS] + torch.randn(400, 12, generator=G, dtype=torch.float64)).clamp_min(0)
WEIGHT, BIAS = CENTRES / 4, torch.linspace(-1, 1, 4, dtype=torch.float64)


def held(features=FEATURES_IN, labels=LABELS, weight=WEIGHT):
    output = features @ weight.T + BIAS
    return HeldOut(output, labels, Classification(), others={FEATURES: features}, classifier=(weight, BIAS))


def scored(spec, features, samples=None):
    """The score of features by a head that is fitted to samples."""
    samples = samples or held()
    head = named(spec)
    shapes = {"output": ("N", 4), FEATURES: ("N", 12)}
    shape = tuple(shapes[name] for name in head.reads)
    before = {name: value.double() for name, value in head.identity(shape if len(shape) > 1 else shape[0]).items()}
    fitted = head.fit(samples, before)
    (score,) = head.apply(run, held(features).read(head), fitted.values, Classification)
    return score


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ("msp", [0.659001, 0.843795, 0.401760, 0.936240]),
        ("energy", [2.417030, 2.669846, 2.111901, 3.065884]),
        ("max-logit", [2, 2.5, 1.2, 3]),
    ],
)
def test_scores_of_logits(spec, want):
    (score,) = named(spec).apply(run, Z, {}, Classification)
    assert score.tolist() == pytest.approx(want, abs=1e-6)


def test_energy_at_a_temperature_and_generalised_entropy():
    (score,) = named("energy:2").apply(run, Z, {}, Classification)
    assert torch.allclose(score, 2 * torch.logsumexp(Z / 2, 1))
    p = Z.softmax(1)
    assert torch.allclose(named("gen:0.5").apply(run, Z, {}, Classification)[0], -(p * (1 - p)).sqrt().sum(1))
    best = p.topk(2, dim=1).values
    assert torch.allclose(named("gen:0.5:2").apply(run, Z, {}, Classification)[0], -(best * (1 - best)).sqrt().sum(1))


def test_odin_without_a_step_is_the_highest_logit_above_the_mean():
    z = 4 * torch.randn(500, 10, generator=G, dtype=torch.float64)
    (score,) = named("odin:10").apply(run, z, {}, Classification)
    assert torch.allclose(score, 10 * ((z / 10).softmax(1).amax(1).log() + math.log(10)))
    (hot,) = named("odin").apply(run, z, {}, Classification)
    (single,) = named("odin").apply(run, z.float(), {}, Classification)
    assert torch.allclose(hot, z.amax(1) - z.mean(1), atol=0.05) and torch.allclose(single.double(), hot, atol=1e-3)


def test_dice_keeps_the_contributions_above_the_percentile():
    weight = torch.tensor([[1, -2, 0.5, 0], [0, 1, -1, 2]], dtype=torch.float64)
    mean = torch.tensor([1, 2, 0.5, 0.25], dtype=torch.float64)
    # the contributions are 1, -4, .25, (0) and (0), 2, -.5, .5: the middle of those that are not 0 by weight is .375
    assert statistics.contributions(weight, mean, 50).tolist() == [[1, 0, 0, 0], [0, 1, 0, 2]]
    assert statistics.contributions(weight, mean, 0).tolist() == [[1, 0, 0.5, 0], [0, 1, -1, 2]]  # all above the least
    dense = torch.where(weight == 0, 1e-9, weight)  # as of a dense classifier, whose percentile is that of all entries
    assert (statistics.contributions(dense, mean, 50) > 1e-6).tolist() == [
        [True, False, True, False],
        [False, True, False, True],
    ]


def test_a_sparse_classifier_keeps_a_share_of_its_active_weights():
    weight = torch.where(torch.rand(WEIGHT.shape, generator=G) < 0.25, WEIGHT, 0.0)
    fitted = HEADS["dice"].fit(held(weight=weight), {})
    kept = fitted.values["weight"] != 0
    assert 0 < int(kept.sum()) <= math.ceil(0.1 * int((weight != 0).sum())) and bool((weight != 0)[kept].all())
    assert fitted.figures["density"] == pytest.approx(float(kept.double().mean()))


def test_ash_by_hand():
    features = torch.tensor([[4, 3, 2, 1, 0, 0, 0, 0, 0, 10]], dtype=torch.float64)
    kept = torch.tensor([[4, 3, 0, 0, 0, 0, 0, 0, 0, 10]], dtype=torch.float64)
    assert torch.equal(named("ash-p:70").changed(run, features, {}), kept)
    assert torch.allclose(named("ash-b:70").changed(run, features, {}), (kept > 0).double() * 20 / 3)
    assert torch.allclose(named("ash-s:70").changed(run, features, {}), kept * 3.242908)
    assert torch.allclose(named("scale:70").changed(run, features, {}), features * 3.242908)
    nothing = torch.zeros(1, 10)
    for spec in ("ash-p", "ash-b", "ash-s", "scale"):
        assert torch.equal(named(spec).changed(run, nothing, {}), nothing)  # finite where no unit fires


def test_react_cuts_features_off():
    score = scored("react:80", FEATURES_IN)
    limit = FEATURES_IN.flatten().sort().values[round((4800 - 1) * 0.8)]
    assert torch.allclose(score, torch.logsumexp(FEATURES_IN.clamp_max(limit) @ WEIGHT.T + BIAS, 1))


def test_mahalanobis_and_its_relative_form_against_a_slow_oracle():
    new = FEATURES_IN[:50] + torch.randn(50, 12, generator=G, dtype=torch.float64)
    means = torch.stack([FEATURES_IN[k == LABELS].mean(0) for k in range(4)])
    shared = torch.cov((FEATURES_IN - means[LABELS]).T, correction=0)
    every = torch.cov(FEATURES_IN.T, correction=0)

    def squared(difference, covariance):
        return (
            difference @ torch.linalg.inv(covariance + 1e-6 * covariance.diagonal().mean() * torch.eye(12)) @ difference
        )

    near = torch.stack([-min(squared(h - m, shared) for m in means) for h in new])
    far = torch.stack([squared(h - FEATURES_IN.mean(0), every) for h in new])
    assert torch.allclose(scored("mahalanobis", new), near)
    assert torch.allclose(scored("relative-mahalanobis", new), near + far)


def test_neighbours_are_those_of_features_of_length_one():
    new = FEATURES_IN[:60] + torch.randn(60, 12, generator=G, dtype=torch.float64)
    units = torch.nn.functional.normalize(FEATURES_IN)
    apart = torch.cdist(torch.nn.functional.normalize(new), units).sort(1).values[:, 4]
    score = scored("knn:5:400", new)
    assert torch.allclose((2 - 2 * score).sqrt(), apart, atol=1e-6)


def test_a_bank_holds_all_classes_evenly_and_always_the_same():
    labels = torch.cat([torch.zeros(900), torch.ones(100)]).long()
    features = torch.cat([torch.ones(900, 3), torch.tensor([[0.0, 0.0, 2.0]]).expand(100, 3)]).double()
    found = statistics.bank(features, labels, 50)
    assert torch.equal(found, statistics.bank(features, labels, 50)) and torch.allclose(
        found.norm(dim=1), torch.ones(50).double()
    )
    assert int((found[:, 0] == 0).sum()) == 5  # a tenth
    few = statistics.bank(features[:20], labels[:20], 50)
    assert bool((few[20:] == 0).all()) and "training samples for a bank of 1000" in str(
        HEADS["knn"].fit(held(), {}).note
    )


def test_the_virtual_logit_against_a_slow_oracle():
    new = torch.randn(50, 12, generator=G, dtype=torch.float64)
    origin = -torch.linalg.lstsq(WEIGHT, BIAS[:, None]).solution[:, 0]  # the shortest point with logits of 0
    moved = FEATURES_IN - origin
    _, _, rows = torch.linalg.svd(moved, full_matrices=False)
    least = rows[6:]

    def length(h):
        return ((h - origin) @ least.T).norm(dim=1)

    alpha = held().output.amax(1).mean() / length(FEATURES_IN).mean()
    assert torch.allclose(scored("vim", new), torch.logsumexp(new @ WEIGHT.T + BIAS, 1) - alpha * length(new))


def test_features_of_low_rank_leave_directions_for_the_residual():
    features = FEATURES_IN.clone()
    features[:, 3:] = 0  # units that never fire
    fitted = HEADS["vim"].fit(held(features), {})
    assert fitted.figures["principal"] < 3 and bool(torch.isfinite(scored("vim", FEATURES_IN, held(features))).all())
    assert bool(torch.isfinite(scored("mahalanobis", FEATURES_IN, held(features))).all())
    with pytest.raises(ValueError, match="do not differ"):
        HEADS["mahalanobis"].fit(held(torch.ones(400, 12).double()), {})


@pytest.mark.parametrize("spec", ["mahalanobis", "relative-mahalanobis", "knn:10:200", "vim"])
def test_features_of_no_class_score_lower(spec):
    outside = (CENTRES[LABELS].roll(5, dims=1) + torch.randn(400, 12, generator=G, dtype=torch.float64)).clamp_min(0)
    known, unknown = scored(spec, FEATURES_IN), scored(spec, outside)
    assert float((known[:, None] > unknown).double().mean()) > 0.9  # AUROC


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("energy:0", "temperature is .* from 0.0001 to 10000"), ("energy:1e-300", "temperature is"),
        ("odin:1e30", "temperature is"), ("gen:2", "gamma is an exponent"), ("gen:0.1:0", "most is a number of classes"),
        ("knn:0", "neighbour is a rank"), ("knn:5:3", "neighbour is a rank"), ("react:0", r"in \(0, 100\]"), ("dice:100", r"in \[0, 100\)"),
        ("ash-s:-1", r"in \[0, 100\)"), ("vim:-1", "principal is a number of directions"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(spec, words):
    with pytest.raises(Exception, match=words):
        named(spec)


def test_a_bank_that_no_file_can_hold_is_refused_before_it_takes_memory():
    program = sp.trace(torch.nn.Linear(12, 4), torch.rand(2, 12))
    with pytest.raises(RecipeError, match=r"keeps 900,000,000 features of 12 numbers each, .* Name a smaller bank"):
        sp.Pipeline.parse("attach-calibration-head{kind=knn:50:900000000}")(program)


def test_contributions_of_a_large_classifier():
    weight = torch.arange(1, 2**24 + 2, dtype=torch.float64)[None]
    kept = statistics.contributions(weight, torch.ones(weight.shape[1], dtype=torch.float64), 50)
    assert int((kept > 0).sum()) == 2**23
