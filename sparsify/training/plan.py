"""Determines, before a run starts, its number of steps and its device."""

from __future__ import annotations

import torch

from sparsify.errors import TrainingError
from sparsify.methods import Method
from sparsify.training.individual import set_aside_count


def steps_per_epoch(method: Method, samples: int, *, batch_size: int, early_stop: int | None, device: str) -> int:
    """Return the optimizer steps per epoch; a last, smaller batch is dropped, and so are samples that the method sets aside.

    Raises:
        TrainingError: If there are fewer samples than a batch, the device is missing, or early stopping does not fit the method.
    """
    aside = set_aside_count(method.individual, samples)
    if samples - aside < batch_size:
        left = f", of which {aside} are set aside," if aside else ""
        raise TrainingError(f"{samples} training samples{left} do not fill a batch of {batch_size}. Lower batch-size.")
    if early_stop and method.averaging:
        raise TrainingError(
            f"method {method.name!r} ends with an average of the last part of the run; early-stop would go back to one epoch of it. "
            f"Leave early-stop out."
        )
    find_device(device)
    return (samples - aside) // batch_size


def check_warmup(warmup: int, total_steps: int) -> None:
    """Check that a warm-up of so many steps ends within the run.

    Raises:
        TrainingError: If it does not, or is negative.
    """
    if not 0 <= warmup < total_steps:
        raise TrainingError(
            f"warmup is {warmup:,} steps, and the run has {total_steps:,}: the learning rate would never reach lr. Set warmup below "
            f"{total_steps:,}, or train longer."
            if warmup >= 0
            else f"warmup should be a number of steps from 0 on, found {warmup}. Set it to 0 for none."
        )


def find_device(text: str) -> torch.device:
    """Return the device that a setting names; ``auto`` is CUDA if available, else the CPU.

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
