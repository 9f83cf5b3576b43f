"""Images under shift: noise, blur and brightness, each at five severities, in numpy."""

from __future__ import annotations

import numpy as np

from sparsify.errors import EvaluationError

KINDS = ("noise", "blur", "brightness")
SEVERITIES = (1, 2, 3, 4, 5)
NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)
"""Standard deviation of the noise, by severity; pixels are in [0, 1]."""
BLUR = (0.01, 0.02, 0.03, 0.04, 0.06)
"""Standard deviation of the blur, by severity, as a share of the shorter side of the image."""
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""What is added to every pixel, by severity; pixels are in [0, 1]."""
CONSTANTS = {"noise": NOISE, "blur": BLUR, "brightness": BRIGHTNESS}
REACH = 4
"""How many standard deviations of the blur a pixel is averaged over, in each direction."""
PIECE = 256
"""Images that are changed at once."""


def told() -> str:
    """Return how images are changed, in sentences, with all constants."""
    noise, brightness = (", ".join(f"{value:g}" for value in values) for values in (NOISE, BRIGHTNESS))
    blur = ", ".join(f"{100 * value:g}" for value in BLUR)
    return (
        f"Images are changed before they are prepared, with pixels in [0, 1], and limited to [0, 1]. Severities 1 to 5: Gaussian noise of "
        f"a standard deviation of {noise}; a Gaussian blur of a standard deviation of {blur} % of the shorter side; brightness, which adds "
        f"{brightness} to every pixel. The kinds are those of Hendrycks and Dietterich (2019), the definitions are not, so figures cannot "
        f"be compared with published ones."
    )


def not_images(inputs: np.ndarray) -> str | None:
    """Return why inputs cannot be shifted; None for images [N, C, H, W] of bytes, or of floats in [0, 1]."""
    if inputs.ndim != 4 or min(inputs.shape[2:]) < 2:
        return f"they have shape {['N', *inputs.shape[1:]]}".replace("'", "")
    if inputs.dtype == np.uint8:
        return None
    if inputs.dtype.kind != "f":
        return f"they are {inputs.dtype}"
    low, high = float(inputs.min()), float(inputs.max())
    return None if low >= 0 and high <= 1 else f"they are numbers from {low:.3g} to {high:.3g}, no pixels in [0, 1]"


def shifted(images: np.ndarray, kind: str, severity: int, *, seed: int = 0, piece: int = 0) -> np.ndarray:
    """Change images as cameras and light may change them, in the manner of Hendrycks and Dietterich 2019, arXiv:1903.12261.

    Pixels are taken in [0, 1], bytes divided by 255, before any normalisation. Results are limited to [0, 1]; those of bytes are rounded to
    bytes again. With the constant of the severity, c:

    - ``noise``: p + c z, with z from a standard normal distribution, drawn per pixel and channel; c = 0.04, 0.08, 0.12, 0.18, 0.26. The
      draws are the same at every severity.
    - ``blur``: a Gaussian blur of a standard deviation of c times the shorter side, in pixels, over 4 standard deviations, with pixels
      mirrored beyond the edge; c = 0.01, 0.02, 0.03, 0.04, 0.06.
    - ``brightness``: p + c in every channel; c = 0.1, 0.2, 0.3, 0.4, 0.5.

    The definitions are of this package and simpler than those of ImageNet-C and CIFAR-10-C: figures cannot be compared with published ones.

    Args:
        images: bytes, or floats in [0, 1], [N, C, H, W].
        kind: one of `KINDS`.
        severity: 1 to 5.
        seed: of the noise.
        piece: which piece of `PIECE` images of a larger set the first of these are, from 0: the noise is that of the whole set.

    Returns:
        Images of the same type and shape.

    Raises:
        EvaluationError: If the inputs are no images, the kind is unknown or the severity is out of range.

    Examples:
        >>> import numpy as np
        >>> from sparsify.evaluation import shifted
        >>> int(shifted(np.full((1, 1, 8, 8), 100, np.uint8), "brightness", 2)[0, 0, 0, 0])
        151
    """
    if (reason := not_images(images)) is not None:
        raise EvaluationError(f"shifted needs images [N, C, H, W] of bytes or of floats in [0, 1], but {reason}.")
    if kind not in KINDS or severity not in SEVERITIES:
        raise EvaluationError(
            f"shifts are {', '.join(KINDS)} of severity 1 to 5, found {kind!r} of severity {severity!r}."
        )
    constant, whole = CONSTANTS[kind][severity - 1], images.dtype == np.uint8
    found = np.empty_like(images)
    down, across = (blurring(side, constant * min(images.shape[2:])) for side in images.shape[2:])
    for start in range(0, len(images), PIECE):
        pixels = images[start : start + PIECE].astype(np.float32)
        pixels = pixels / np.float32(255) if whole else pixels
        if kind == "noise":
            draws = np.random.default_rng([seed, piece + start // PIECE])
            pixels = pixels + np.float32(constant) * draws.standard_normal(pixels.shape, np.float32)
        elif kind == "blur":
            pixels = down @ pixels @ across.T
        else:
            pixels = pixels + np.float32(constant)
        pixels = pixels.clip(0, 1)
        found[start : start + PIECE] = np.rint(pixels * 255) if whole else pixels
    return found


def blurring(side: int, deviation: float) -> np.ndarray:
    """Return the matrix [side, side] that blurs a row of pixels, float32; pixels beyond the edge are mirrored, the edge included.

    Args:
        side: number of pixels.
        deviation: standard deviation in pixels, above 0.
    """
    reach = int(np.ceil(REACH * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    mirrored, matrix = np.pad(np.arange(side), reach, mode="symmetric"), np.zeros((side, side))
    for offset, weight in enumerate(weights):
        np.add.at(matrix, (np.arange(side), mirrored[offset : offset + side]), weight)
    return matrix.astype(np.float32)
