"""What figures take and return: arrays of numpy, or anything that numpy converts to one, such as a tensor on the CPU."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
ArrayLike = npt.ArrayLike
