"""What a run will need, known before it starts: how many steps, and on which device."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsify.errors import TrainingError
from sparsify.methods import Method
from sparsify.parts.trees import Tree, shapes


def steps_per_epoch(method: Method, samples: int, *, batch_size: int, early_stop: int | None, device: str) -> int:
    """Optimizer steps of an epoch; a last, smaller batch is left out.

    Raises:
        TrainingError: If there are fewer samples than a batch, the device is missing, or early stopping does not fit the method.
    """
    if samples < batch_size:
        raise TrainingError(f"{samples} training samples do not fill a batch of {batch_size}. Lower batch-size.")
    if early_stop and method.averaging:
        raise TrainingError(
            f"method {method.name!r} ends with an average of the last part of the run; early-stop would go back to one epoch of it. "
            f"Leave early-stop out."
        )
    find_device(device)
    return samples // batch_size


def check_augment(inputs: Tree, augment: str) -> None:
    """Refuse to augment what is no batch of images.

    Raises:
        TrainingError: If ``augment`` is not ``none`` and the inputs are no float tensor [N, C, H, W].
    """
    if augment == "none" or (isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim == 4):
        return
    found = (
        f"{inputs.dtype} of shape {list(inputs.shape)}" if isinstance(inputs, Tensor) else f"several ({shapes(inputs)})"
    )
    raise TrainingError(
        f"augment = {augment!r} shifts and flips images, float [N, C, H, W]; the inputs are {found}. Set augment = 'none', and draw what "
        f"is random in a Dataset of your own."
    )


def find_device(text: str) -> torch.device:
    """The device a setting names; ``auto`` is CUDA where there is one.

    Raises:
        TrainingError: If there is no such device here.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise TrainingError(f"device should be auto, cpu, cuda or cuda:N, found {text!r}.") from error
    there = torch.cuda.device_count() if device.type == "cuda" else int(device.type == "cpu")
    if (device.index or 0) >= there:
        raise TrainingError(f"there is no device {text!r} here. Use device = auto, or cpu.")
    return device
