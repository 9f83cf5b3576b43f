"""What is known before training: only images are shifted and flipped."""

from __future__ import annotations

import pytest
import torch

import sparsify as sp
from sparsify.errors import TrainingError
from sparsify.methods import dense
from sparsify.parts.samples import TensorSamples
from sparsify.training import Settings, train
from sparsify.training.plan import check_augment

IMAGES = torch.rand(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.rand(2, 5), r"float \[N, C, H, W\]; the inputs are torch.float32 of shape \[2, 5\]"),
        (torch.zeros(2, 1, 8, 8).long(), "torch.int64 of shape"),
        ({"image": IMAGES, "age": torch.rand(2, 1)}, r"several \(image \[2, 1, 8, 8\], age \[2, 1\]\)"),
    ],
)
def test_only_images_are_augmented(inputs, message):
    with pytest.raises(TrainingError, match=message):
        check_augment(inputs, "crop-flip")
    check_augment(inputs, "none")
    check_augment(IMAGES, "crop-flip")


def test_the_loop_refuses_before_its_first_step(tmp_path):
    program = sp.trace(torch.nn.Linear(5, 3), torch.rand(2, 5))
    before = program.state_dict()["weight"].clone()
    samples = TensorSamples(torch.rand(8, 5), torch.arange(8) % 3)
    with pytest.raises(TrainingError, match="shifts and flips images"):
        train(
            dense(),
            program,
            samples,
            samples,
            Settings(epochs=1, batch_size=4, augment="crop-flip"),
            folder=tmp_path,
            key="k",
        )
    assert torch.equal(program.state_dict()["weight"], before) and not list(tmp_path.iterdir())
