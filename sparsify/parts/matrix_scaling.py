"""Matrix scaling with off-diagonal and intercept regularisation (ODIR), fitted on held-out scores in float64.

For scores z, softmax(W z + b) has K² + K parameters, which few samples do not determine. ODIR (Kull et al. 2019, arXiv:1910.12656) pulls
the entries beside the diagonal and the biases towards 0, with weights that cross-validation chooses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.parts.calibrators import minimum, standardised

GRID = (10.0, 1.0, 0.1, 0.01, 0.001)
"""Weights of the square of one parameter that cross-validation tries, the strongest first."""
MIDDLE = 0.1
"""Weight of the square of a bias while that of the other parameters is chosen."""
FOLDS = 5
L2 = 1e-4
"""Weight of the pull that makes every optimum finite and unique, as in `sparsify.parts.calibrators.fit_vector_scaling`."""
MOST_CLASSES = 200
"""Largest number of classes: a step of the fit takes time in proportion to N · K²."""
_ROUGH, _EXACT, _ACCEPTED = 1e-5, 1e-9, 1e-6
"""Largest entry of a gradient: at which a search of cross-validation stops, at which the last search stops, and which a result may have."""


@dataclass(frozen=True)
class _Problem:
    """The mean NLL plus weighted squared distances from the start, as a function of [W b], [K, K + 1]. It is strictly convex.

    Attributes:
        features: scores and a column of ones, [N, K + 1].
        truth: one-hot labels, [N, K].
        pull: weight of the squared distance of each entry from the start, [K, K + 1], above 0.
    """

    features: Tensor
    truth: Tensor
    pull: Tensor

    @property
    def start(self) -> Tensor:
        """W is the identity and b is 0."""
        return torch.eye(*self.pull.shape, dtype=torch.float64)

    def value(self, x: Tensor) -> tuple[float, Tensor, Tensor]:
        """Compute the objective at ``x``, its gradient [K, K + 1], and the probabilities [N, K]."""
        logs, away = torch.log_softmax(self.features @ x.T, 1), x - self.start
        loss = -(self.truth * logs).sum(1).mean() + (self.pull * away**2).sum()
        probabilities = logs.exp()
        gradient = (probabilities - self.truth).T @ self.features / len(logs) + 2 * self.pull * away
        return float(loss), gradient, probabilities

    def curvature(self, probabilities: Tensor, direction: Tensor) -> Tensor:
        """Compute the product of the Hessian and a direction [K, K + 1]."""
        moved = probabilities * (self.features @ direction.T)
        moved = moved - probabilities * moved.sum(1, keepdim=True)
        return moved.T @ self.features / len(moved) + 2 * self.pull * direction

    def diagonal(self, probabilities: Tensor) -> Tensor:
        """Compute the diagonal of the Hessian, [K, K + 1]."""
        spread = (probabilities * (1 - probabilities)).T @ self.features**2
        return spread / len(probabilities) + 2 * self.pull


def fit_matrix_scaling(
    logits: Tensor, labels: Tensor, *, off_diagonal: float, intercept: float, l2: float = L2
) -> tuple[Tensor, Tensor]:
    """Find the matrix W [K, K] and the bias b [K] that minimise the regularised NLL of softmax(W z + b).

    With V = T W, in units of the temperature T of the logits (1 if the data do not determine it), the objective is

        NLL + off_diagonal / (K (K - 1)) sum_{i != j} V_ij² + intercept / K sum_i b_i² + l2 / 2 (|V - I|² + |b|²),

    which is strictly convex. Newton's method with line search finds its minimum from temperature scaling, V = I and b = 0; conjugate
    gradients compute the steps, so that no Hessian of K⁴ entries is stored.

    Args:
        logits: float [N, K], finite, with K from 2 to `MOST_CLASSES`.
        labels: int64 [N], 0 to K - 1.
        off_diagonal: lambda of ODIR, >= 0.
        intercept: mu of ODIR, >= 0.
        l2: weight of the pull towards temperature scaling, above 0.

    Returns:
        (W [K, K], b [K]), float64.

    Raises:
        ValueError: If the data are empty or not finite, there are too many classes, or the optimum was not reached.
    """
    scores, temperature = standardised(logits, labels)
    _check_classes(scores)
    problem = _problem(scores, labels, off_diagonal=off_diagonal, intercept=intercept, l2=l2)
    found, steepest = _minimum(problem, problem.start, stop=_EXACT)
    if steepest > _ACCEPTED:
        raise ValueError(f"matrix scaling stopped at a gradient of {steepest:.1e}; use temperature scaling")
    return found[:, :-1] / temperature, found[:, -1]


def choose_regularisation(logits: Tensor, labels: Tensor, *, folds: int = FOLDS) -> tuple[float, float]:
    """Choose lambda and mu of `fit_matrix_scaling` by cross-validation: the least NLL of the samples left out.

    Lambda is chosen first, with mu = `MIDDLE` · K, and then mu. Both are weights of `GRID` times the number of parameters they are spread
    over. The samples of each class go to the folds in turn, so that the choice is the same in each call.

    Args:
        logits: float [N, K], finite, with K from 2 to `MOST_CLASSES`.
        labels: int64 [N], 0 to K - 1.
        folds: number of parts of the samples, >= 2.

    Returns:
        (lambda, mu). With fewer than two samples, the strongest of the grid.

    Raises:
        ValueError: If the data are empty or not finite, or there are too many classes.
    """
    scores, _ = standardised(logits, labels)
    _check_classes(scores)
    classes, parts = scores.shape[1], _folds(labels, min(folds, len(labels)))
    entries = classes * (classes - 1)
    if len(labels) < 2:
        return GRID[0] * entries, GRID[0] * classes
    splits = [(parts != part, parts == part) for part in range(min(folds, len(labels)))]
    found = [torch.eye(classes, classes + 1, dtype=torch.float64) for _ in splits]  # where the next search begins

    def loss(weight: float, bias: float) -> float:
        total = 0.0
        for place, (inside, outside) in enumerate(splits):
            problem = _problem(
                scores[inside], labels[inside], off_diagonal=weight * entries, intercept=bias * classes, l2=L2
            )
            found[place], _ = _minimum(problem, found[place], stop=_ROUGH)
            logs = torch.log_softmax(_features(scores[outside]) @ found[place].T, 1)
            total -= float(logs.gather(1, labels[outside][:, None]).sum())
        return total

    weight = min(GRID, key=lambda weight: loss(weight, MIDDLE))
    bias = min(GRID, key=lambda bias: loss(weight, bias))
    return weight * entries, bias * classes


def _problem(scores: Tensor, labels: Tensor, *, off_diagonal: float, intercept: float, l2: float) -> _Problem:
    classes = scores.shape[1]
    pull = torch.full((classes, classes), off_diagonal / (classes * (classes - 1)), dtype=torch.float64)
    pull = torch.cat([pull.fill_diagonal_(0.0), torch.full((classes, 1), intercept / classes).double()], 1) + l2 / 2
    return _Problem(_features(scores), torch.nn.functional.one_hot(labels, classes).double(), pull)


def _features(scores: Tensor) -> Tensor:
    return torch.cat([scores, torch.ones_like(scores[:, :1])], 1)


def _minimum(problem: _Problem, x: Tensor, *, stop: float) -> tuple[Tensor, float]:
    """Find the minimum from ``x``. Returns it with the largest entry of the gradient, which is below ``stop`` if rounding allows it."""

    def newton_step(gradient: Tensor, probabilities: Tensor) -> Tensor:
        times = functools.partial(problem.curvature, probabilities)
        return _solution(times, gradient, problem.diagonal(probabilities))

    return minimum(problem.value, newton_step, x, stop=stop)


def _solution(times: Callable[[Tensor], Tensor], gradient: Tensor, diagonal: Tensor) -> Tensor:
    """Solve H s = gradient by conjugate gradients, the more exactly the smaller the gradient. Any result is a direction of ascent.

    Args:
        times: computes the product of H, which is symmetric and positive definite, and a tensor.
        gradient: the right side.
        diagonal: the diagonal of H, of the same shape, by which the search is scaled.
    """
    norm = float(gradient.norm())
    enough = min(0.1, norm**0.5) * norm
    found, rest, search = torch.zeros_like(gradient), gradient, gradient / diagonal
    power = float((rest * search).sum())
    for _ in range(min(2 * gradient.numel(), 1000)):
        image = times(search)
        share = power / float((search * image).sum())
        found, rest = found + share * search, rest - share * image
        if float(rest.norm()) <= enough:
            break
        scaled = rest / diagonal
        before, power = power, float((rest * scaled).sum())
        search = scaled + power / before * search
    return found


def _folds(labels: Tensor, folds: int) -> Tensor:
    """Return the number of the fold of each sample, int64 [N]."""
    order = labels.argsort(stable=True)
    found = torch.empty_like(order)
    found[order] = torch.arange(len(labels)) % folds
    return found


def _check_classes(scores: Tensor) -> None:
    classes = scores.shape[1]
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"matrix scaling takes 2 to {MOST_CLASSES} classes, found {classes}; use temperature scaling")
