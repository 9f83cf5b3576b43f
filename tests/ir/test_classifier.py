"""The classifier is found from the output, whatever it is called and whatever lies behind it; or refused with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import PassError
from sparsify.ir.classifier import classifier
from tests.cases import CASES, digits


class Behind(nn.Module):
    """A layer of K outputs and a function of what it gives."""

    def __init__(self, layer, after, before=lambda x: x):
        super().__init__()
        self.body, self.zzz, self._after, self._before = nn.Conv2d(1, 6, 3, padding=1), layer, after, before

    def forward(self, x):
        return self._after(self.zzz(self._before(torch.relu(self.body(x)))))


def tokens(x):
    return x.flatten(2).transpose(1, 2)  # [N, 64, 6]


FOUND = {
    "squeezenet": Behind(nn.Conv2d(6, 10, 1), lambda z: torch.relu(z).mean((2, 3))),
    "pooled": Behind(nn.Conv2d(6, 10, 3), lambda z: torch.flatten(nn.functional.adaptive_avg_pool2d(z, 1), 1)),
    "viewed": Behind(nn.Conv2d(6, 10, 8, bias=False), lambda z: z.view(z.shape[0], 10)),
    "squeezed": Behind(nn.Conv2d(6, 10, 8), lambda z: z.squeeze(-1).squeeze(-1) / 2.0),
    "tokens": Behind(nn.Linear(6, 10), lambda z: z.mean(1), tokens),
    "last token": Behind(nn.Linear(6, 10), lambda z: z[:, -1], tokens),
    "turned": Behind(nn.Linear(6, 10), lambda z: z.transpose(1, 2).mean(-1), tokens),
    "permuted": Behind(nn.Linear(6, 10), lambda z: z.permute(2, 0, 1).permute(1, 0, 2).amax(2), tokens),
    "normed": Behind(nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 10, 8)), lambda z: z.flatten(1)),
}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("phase", ["train", "eval"])
def test_found_behind(name, phase):
    program = sp.trace(FOUND[name], (digits()[0],))
    found = classifier(program, phase)
    assert found.weight == ("zzz.parametrizations.weight.original1" if name == "normed" else "zzz.weight")
    assert found.bias == (None if name == "viewed" else "zzz.bias")
    assert found.logits.meta["spec"].shape == ("N", 10)
    assert (found.layer.node is found.logits) == (not found.tail)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_has_its_last_layer_found(case):
    found = classifier(case.trace(), "eval")
    assert found.weight == {"mlp": "5.weight", "conv_bn": "fc.weight", "wide": "6.weight"}.get(case.name, "head.weight")


def test_found_through_masks_taps_and_lowering():
    text = "insert-masks{density=0.5} | insert-gradient-taps"
    program = sp.Pipeline.parse(text)(CASES[1].trace())
    assert {classifier(program, phase).weight for phase in ("train", "eval")} == {"fc.weight"}


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x):
        return self.a(x.flatten(1)) + self.b(x.flatten(1))


REFUSED = {
    "softmax": (Behind(nn.Conv2d(6, 10, 8), lambda z: z.flatten(1).softmax(1)), "softmax"),
    "log-softmax": (Behind(nn.Conv2d(6, 10, 8), lambda z: z.flatten(1).log_softmax(1)), "log_softmax"),
    "a sum of two": (Sum(), "add"),
    "joined with places": (Behind(nn.Conv2d(6, 10, 7), lambda z: z.flatten(1)), "joins the scores"),
    "a mean over classes": (Behind(nn.Linear(6, 10), lambda z: z.mean(2), tokens), "joins the scores"),
    "in groups": (Behind(nn.Conv2d(6, 10, 8, groups=2), lambda z: z.flatten(1)), "a convolution in groups"),
    "a bare product": (Behind(nn.Identity(), lambda z: z.flatten(1) @ torch.ones(384, 10)), "matmul"),
    "a norm": (Behind(nn.Linear(6, 10), lambda z: nn.functional.layer_norm(z.mean(1), (10,)), tokens), "layer_norm"),
    "not a batch of logits": (Behind(nn.Linear(6, 10), lambda z: z, tokens), r"returns logits \[N, K\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name):
    model, message = REFUSED[name]
    program = sp.trace(model, (digits()[0],))
    with pytest.raises(PassError, match=message):
        classifier(program, "eval")
