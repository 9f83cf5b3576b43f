"""A model of single frames as a model of sequences: its steps of time lie one after another in the first dimension."""

from __future__ import annotations

from torch import Tensor, nn

from sparsify.arguments import checked
from sparsify.errors import TraceError


class PerStep(nn.Module):
    """Apply a model to every frame of a sequence, and average its outputs over the frames.

    The frames of all samples are one batch for the model, [T * N, ...], all samples of the first frame first. After the pass
    ``spiking{steps=T encoding=frames}``, neurons keep their potential from frame to frame.

    Args:
        model: takes frames [N, ...] and returns [N, ...].

    Raises:
        TraceError: If the model is no module.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> frames = sp.PerStep(torch.nn.Sequential(torch.nn.Linear(40, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)))
        >>> tuple(frames(torch.rand(3, 25, 40)).shape)
        (3, 10)
    """

    @checked(TraceError)
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sequence: Tensor) -> Tensor:
        """Return the mean of the outputs for each frame.

        Args:
            sequence: [N, T, ...].
        """
        steps = sequence.shape[1]
        made: Tensor = self.model(sequence.transpose(0, 1).flatten(0, 1))
        return made.unflatten(0, (steps, -1)).mean(0)
