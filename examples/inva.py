"""Several images predict one: an integrative variational autoencoder (InVA, Lei et al. 2024, arXiv:2402.02734), and its two rivals.

    sparsify run examples/inva.py:inva --data examples/inva.py:synthetic --task regression --loss examples/inva.py:loss \
        --pattern grouped:16 --sparsity 0.9 --epochs 60 --set train.optimizer=adamw --set train.lr=0.002 --out runs/inva

The abstract describes the model and no code is public, so likelihoods, sizes and the prediction from the features are choices of ours.
Each view k has an encoder of its own for shallow features h_k, and a decoder that rebuilds the view from them. One encoder, called once per
view, makes deep features z_k of h_k, and one decoder takes z_k back to where h_k lives; that is how views borrow from each other. All h_k
and decoded z_k predict the image.

In training, features are drawn and the model returns what the loss needs beside the prediction: per sample, how far the views that
it rebuilds are off, and two Kullback-Leibler divergences. In the eval phase features are means, and the prediction is all it returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = {"reconstruction": 0.1, "shallow": 1e-4, "deep": 1e-4}
"""Of the terms of the loss beside the error of the prediction, for views and images of deviation 1."""


class Gaussian(nn.Module):
    """Latents given ``x``: a value (a draw in training, else the mean), the mean, and the logarithm of the variance."""

    def __init__(self, inputs: int, latents: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Linear(inputs, hidden)
        self.mean, self.log_variance = nn.Linear(hidden, latents), nn.Linear(hidden, latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.relu(self.body(x))
        mean, log_variance = self.mean(y), self.log_variance(y).clamp(-8, 4)
        drawn = mean + (log_variance / 2).exp() * torch.randn_like(mean) if self.training else mean
        return drawn, mean, log_variance


def divergence(mean: Tensor, log_variance: Tensor, about: Tensor | float = 0.0) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(about, 1)) per sample, [N]."""
    return 0.5 * (log_variance.exp() + (mean - about) ** 2 - 1 - log_variance).sum(1)


def layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def off(rebuilt: Tensor, view: Tensor) -> Tensor:
    """Mean squared error per sample, [N]."""
    return ((rebuilt - view) ** 2).mean(1)


class InVA(nn.Module):
    """An integrative autoencoder.

    Args:
        views: pixels of each view, by the name of its input.
        image: shape of the image to predict.
        latents: h and z have, per view.
        hidden: width of all hidden layers.
    """

    def __init__(
        self, views: Mapping[str, int], image: tuple[int, ...], *, latents: int = 16, hidden: int = 128
    ) -> None:
        super().__init__()
        self.image = image
        self.shallow = nn.ModuleDict({name: Gaussian(size, latents, hidden) for name, size in views.items()})
        self.deep, self.back = Gaussian(latents, latents, hidden), layers(latents, hidden, latents)
        self.rebuild = nn.ModuleDict({name: layers(latents, hidden, size) for name, size in views.items()})
        self.predict = layers(2 * latents * len(views), hidden, math.prod(image))

    def forward(self, **views: Tensor) -> dict[str, Tensor]:
        features: list[Tensor] = []
        terms: dict[str, list[Tensor]] = {name: [] for name in WEIGHTS}
        for name, encode in self.shallow.items():
            x = views[name].flatten(1)
            h, mean, log_variance = encode(x)
            z, deep_mean, deep_log_variance = self.deep(h)
            back = self.back(z)
            features += [h, back]
            terms["reconstruction"].append(off(self.rebuild[name](h), x))
            terms["shallow"].append(divergence(mean, log_variance, back))
            terms["deep"].append(divergence(deep_mean, deep_log_variance))
        found = {"prediction": self.predict(torch.cat(features, 1)).unflatten(1, self.image)}
        return found | {name: sum(values) for name, values in terms.items()} if self.training else found


class Autoencoder(nn.Module):
    """A plain variational autoencoder of one view, [N, pixels], whose latents predict the image."""

    def __init__(self, view: int, image: tuple[int, ...], latents: int, hidden: int) -> None:
        super().__init__()
        self.image = image
        self.encode, self.rebuild = Gaussian(view, latents, hidden), layers(latents, hidden, view)
        self.predict = layers(latents, hidden, math.prod(image))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, mean, log_variance = self.encode(x)
        return self.predict(h).unflatten(1, self.image), off(self.rebuild(h), x), divergence(mean, log_variance)


class Joint(nn.Module):
    """One autoencoder of all views side by side."""

    def __init__(
        self, views: Mapping[str, int], image: tuple[int, ...], *, latents: int = 16, hidden: int = 128
    ) -> None:
        super().__init__()
        self.names, self.coder = list(views), Autoencoder(sum(views.values()), image, latents, hidden)

    def forward(self, **views: Tensor) -> dict[str, Tensor]:
        prediction, rebuilt, shallow = self.coder(torch.cat([views[name].flatten(1) for name in self.names], 1))
        terms = {"reconstruction": rebuilt, "shallow": shallow} if self.training else {}
        return {"prediction": prediction, **terms}


class Separate(nn.Module):
    """An autoencoder per view, trained apart; the mean of what they predict."""

    def __init__(
        self, views: Mapping[str, int], image: tuple[int, ...], *, latents: int = 16, hidden: int = 128
    ) -> None:
        super().__init__()
        coders = {name: Autoencoder(size, image, latents, hidden) for name, size in views.items()}
        self.coders = nn.ModuleDict(coders)

    def forward(self, **views: Tensor) -> dict[str, Tensor]:
        found = [coder(views[name].flatten(1)) for name, coder in self.coders.items()]
        each, rebuilt, shallow = (torch.stack(values, 1) for values in zip(*found, strict=True))
        terms = {"apart": each, "reconstruction": rebuilt.sum(1), "shallow": shallow.sum(1)} if self.training else {}
        return {"prediction": each.mean(1), **terms}


def loss(output: Mapping[str, Tensor], target: Tensor) -> Tensor:
    """The error of the prediction; in training also that of the rebuilt views, and the two divergences."""
    predicted = output["apart"] if "apart" in output else output["prediction"][:, None]
    found = ((predicted - target[:, None]) ** 2).mean((0, *range(2, predicted.ndim))).sum()
    return found + sum(weight * output[name].mean() for name, weight in WEIGHTS.items() if name in output)


def figures(output: Mapping[str, Tensor], target: Tensor) -> dict[str, float]:
    """R2 over all pixels, for ``--task custom``; ``--task regression`` has it without."""
    error, spread = (output["prediction"] - target) ** 2, (target - target.mean(0)) ** 2
    return {"r2": float(1 - error.sum() / spread.sum())}


# --- three views of what six numbers make

SYNTHETIC = dict.fromkeys(("first", "second", "third"), 256)


def synthetic(shown: int = 4) -> dict[str, dict[str, np.ndarray]]:
    """Views and an image of 256 pixels, non-linear maps of 6 numbers with noise; 800 samples to train, 500 to test.

    Args:
        shown: of the 6 numbers in each view, others in every view; the image shows all of them and products of two.

    Returns:
        Arrays by name, under the parts ``train``, ``validation`` and ``test``; ``y`` is the image to predict.
    """
    rng = np.random.default_rng(0)
    u = rng.normal(size=(1600, 6))
    crossed = np.concatenate([u, *(u * np.roll(u, shift, axis=1) for shift in (1, 2))], axis=1)

    def image(inputs: np.ndarray, noise: float) -> np.ndarray:
        seen = np.tanh(inputs @ rng.normal(size=(inputs.shape[1], 32)) / math.sqrt(6)) @ rng.normal(size=(32, 256))
        seen = (seen - seen.mean(0)) / seen.std(0)
        return (seen + noise * rng.normal(size=seen.shape)).astype(np.float32)

    arrays = {
        **{name: image(np.roll(u, -2 * k, axis=1)[:, :shown], 1.0) for k, name in enumerate(SYNTHETIC)},
        "y": image(crossed, 0.3),
    }
    parts = {"train": slice(0, 800), "validation": slice(800, 1100), "test": slice(1100, 1600)}
    return {part: {name: values[rows] for name, values in arrays.items()} for part, rows in parts.items()}


def alike() -> dict[str, dict[str, np.ndarray]]:
    """Views that show all 6 numbers, so that each could do without the others."""
    return synthetic(6)


def inva() -> nn.Module:
    """For the synthetic views."""
    return InVA(SYNTHETIC, (256,))


def joint() -> nn.Module:
    """For the synthetic views."""
    return Joint(SYNTHETIC, (256,))


def separate() -> nn.Module:
    """For the synthetic views."""
    return Separate(SYNTHETIC, (256,))


# --- three views of a real image

VIEWS = {"edges": 28 * 28, "thumbnail": 7 * 7, "blurred": 28 * 28}
MEAN, DEVIATION = 0.286, 0.353
"""Of Fashion-MNIST's pixels in [0, 1]."""


def seen(images: np.ndarray) -> dict[str, np.ndarray]:
    """Views of images [N, 28, 28], all uint8: where neighbours differ by more than 48, means of 4 x 4 pixels, and means of 9 x 9."""
    x = torch.from_numpy(images)[:, None].float()
    right, below = ((x - x.roll(1, axis)).abs() > 48 for axis in (3, 2))
    found = {
        "edges": (right | below) * 255.0,
        "thumbnail": functional.avg_pool2d(x, 4),
        "blurred": functional.avg_pool2d(x, 9, 1, 4),
    }
    return {name: view[:, 0].round().to(torch.uint8).numpy() for name, view in found.items()}


def write_views(source: Path, target: Path, *, train: int = 1200, test: int = 1000) -> None:
    """Write views of the first images of an .npz file (``x_train``, ``x_test``) to another, with the images, at deviation 1, to predict."""
    arrays: dict[str, np.ndarray] = {}
    with np.load(source, allow_pickle=False) as images:
        for part, count in (("train", train), ("test", test)):
            some = images[f"x_{part}"][:count]
            arrays |= {f"x_{part}.{name}": view for name, view in seen(some).items()}
            arrays[f"y_{part}"] = ((some / 255 - MEAN) / DEVIATION).astype(np.float32)
    np.savez(target, **arrays)


def inva_images() -> nn.Module:
    """For views of 28 x 28 images."""
    return InVA(VIEWS, (28, 28), latents=32, hidden=256)


def joint_images() -> nn.Module:
    """For views of 28 x 28 images."""
    return Joint(VIEWS, (28, 28), latents=32, hidden=256)


def separate_images() -> nn.Module:
    """For views of 28 x 28 images."""
    return Separate(VIEWS, (28, 28), latents=32, hidden=256)
