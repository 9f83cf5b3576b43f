"""Knowledge distillation: a second term of the loss, which pulls the outputs towards those of a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Distillation:
    """How the loss is combined with a teacher's term: (1 - weight) · loss + weight · teacher's term.

    Attributes:
        weight: weight of the teacher's term, in [0, 1].
        temperature: divides the logits of student and teacher before the softmax, above 0.
    """

    weight: float
    temperature: float

    def joined(self, loss: Tensor, taught: Tensor) -> Tensor:
        """Combine the scalar ``loss`` with the teacher's term, such as `distillation_loss` at this temperature; returns a scalar."""
        return (1 - self.weight) * loss + self.weight * taught


@dataclass(frozen=True)
class SelfDistillation:
    """How a model learns from its own past: (1 - a) · loss + a · teacher's term, where the teacher is the model at an earlier step.

    Steps are divided into intervals. The teacher of an interval is the model at the end of the one before; the first has none.

    Attributes:
        weight: weight a of the teacher's term in the last interval, in [0, 1]. In interval t of T, from 1, it is weight · t / T; 0 in the
            first.
        every: steps per interval; 0: an epoch of the loop.
    """

    weight: float
    every: int

    def weight_at(self, step: int, every: int, total: int) -> float:
        """Return a at ``step``, from 1, of a run of ``total`` steps with intervals of ``every`` steps."""
        intervals, before = -(-total // every), (step - 1) // every
        return self.weight * min(before + 1, intervals) / intervals if before else 0.0

    def joined(self, loss: Tensor, taught: Tensor, weight: float) -> Tensor:
        """Combine the scalar ``loss`` with the teacher's term; returns a scalar."""
        return (1 - weight) * loss + weight * taught


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T² · KL(softmax(teacher / T) ‖ softmax(logits / T)), averaged over the batch; a scalar, at least 0.

    The factor T² keeps gradients as large as those of cross-entropy for any T (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Args:
        logits: float [N, K], of the student.
        teacher: float [N, K]; receives no gradient.
        temperature: T, above 0.
    """
    wanted = (teacher.detach() / temperature).log_softmax(1)
    found = (logits / temperature).log_softmax(1)
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(1).mean()


def yes_no_distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T² · KL(sigmoid(teacher / T) ‖ sigmoid(logits / T)) for yes/no answers, averaged over all answers; a scalar, at least 0.

    It is the binary cross-entropy towards the teacher's probabilities minus their entropy, which has no gradient.

    Args:
        logits: float, any shape, one per yes/no answer of the student.
        teacher: float, of the same shape; receives no gradient.
        temperature: T, above 0.
    """
    wanted = teacher.detach() / temperature
    target = wanted.sigmoid()
    cross, own = (functional.binary_cross_entropy_with_logits(z, target) for z in (logits / temperature, wanted))
    return temperature**2 * (cross - own)
