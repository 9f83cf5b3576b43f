"""Knowledge distillation: a second term of the loss, which asks for the answers of a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Distillation:
    """How a loss is joined with `distillation_loss`: (1 - weight) · loss + weight · distillation loss.

    Attributes:
        weight: of the teacher's term, in [0, 1].
        temperature: of both softmaxes, above 0.
    """

    weight: float
    temperature: float

    def joined(self, loss: Tensor, logits: Tensor, teacher: Tensor) -> Tensor:
        """A scalar: ``loss`` with the teacher's term for ``logits`` and ``teacher``, both [N, K]."""
        return (1 - self.weight) * loss + self.weight * distillation_loss(logits, teacher, self.temperature)


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
