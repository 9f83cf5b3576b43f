"""Knowledge distillation: a second term of the loss, which asks for the answers of a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Distillation:
    """How a loss is joined with that of a teacher's answers: (1 - weight) · loss + weight · the other.

    Attributes:
        weight: of the teacher's term, in [0, 1].
        temperature: that the probabilities of both are softened by, above 0.
    """

    weight: float
    temperature: float

    def joined(self, loss: Tensor, taught: Tensor) -> Tensor:
        """A scalar: ``loss`` with the term of the teacher, such as `distillation_loss` at this temperature."""
        return (1 - self.weight) * loss + self.weight * taught


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(logits / T)), the mean over the batch; a scalar, at least 0.

    T² keeps its gradients of the size of cross-entropy's, whatever T (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Args:
        logits: [N, K].
        teacher: [N, K]; takes no gradient.
        temperature: T, above 0.
    """
    wanted = (teacher.detach() / temperature).log_softmax(1)
    found = (logits / temperature).log_softmax(1)
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(1).mean()


def yes_no_distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The same of answers of yes or no: T² · KL(sigmoid(teacher / T) ‖ sigmoid(logits / T)), the mean over all answers; at least 0.

    It is binary cross-entropy towards the probabilities of the teacher, less their own entropy, which no gradient sees.

    Args:
        logits: of any shape, one per answer.
        teacher: of the same shape; takes no gradient.
        temperature: T, above 0.
    """
    wanted = teacher.detach() / temperature
    target = wanted.sigmoid()
    cross, own = (functional.binary_cross_entropy_with_logits(z, target) for z in (logits / temperature, wanted))
    return temperature**2 * (cross - own)
