"""Arguments and weights of kinds beside a float32 tensor: accepted as they are, and a call must repeat what the trace fixed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir import Program, trace
from tests.cases import digits


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x, extra=None, *, mode="plain", scale=1.0):
        y = self.fc(x.flatten(1)) * scale
        if isinstance(extra, torch.Tensor) or (isinstance(extra, (int, float)) and not isinstance(extra, bool)):
            y = y + extra
        return -y if mode == "negative" or extra is True else y


@pytest.mark.parametrize("extra", [None, 2.0, 3, True, "text"], ids=repr)
def test_constants_are_part_of_the_trace(extra, tmp_path):
    model, (x, _) = Optional().eval(), digits(6)
    program = trace(model, (x, extra), {"mode": "negative", "scale": 0.5})
    program.save(tmp_path / "a.sparsify")
    for other in (program, Program.load(tmp_path / "a.sparsify"), program.clone()):
        assert [spec.name for spec in other.input_specs] == ["x"]
        assert torch.equal(
            other(x[:3], extra, mode="negative", scale=0.5), model(x[:3], extra, mode="negative", scale=0.5)
        )
        with pytest.raises(TraceError, match="was 'negative' when it was traced"):
            other(x, extra, mode="plain", scale=0.5)
        with pytest.raises(TraceError, match="found a tensor of shape"):
            other(x, x, mode="negative", scale=0.5)
    with pytest.raises(TraceError, match="was traced as a tensor"):
        program(None, extra, mode="negative", scale=0.5)


def test_other_sizes_are_fixed_and_the_refusal_says_so():
    program = trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), (torch.randn(2, 12, 8),))
    with pytest.raises(
        TraceError, match=r"\[N, 12, 8\], found \[2, 13, 8\]: the trace fixed the other sizes, only N may vary"
    ):
        program(torch.randn(2, 13, 8))


def test_lazy_modules_are_initialised():
    model, (x, _) = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10)), digits(6)
    rng = torch.random.get_rng_state()
    program = trace(model, (x,))
    assert torch.equal(rng, torch.random.get_rng_state())
    assert [site.shape for site in program.maskable()] == [(4, 1, 3, 3), (10, 144)]
    assert torch.equal(program.eval()(x), model.eval()(x))


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 10, dtype=torch.cfloat))

    def forward(self, x):
        return (x.flatten(1).to(torch.cfloat) @ self.w).abs()


KINDS = {
    "bfloat16": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).bfloat16(), lambda: digits(6)[0].bfloat16()),
    "float64": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), lambda: digits(6)[0].double()),
    "complex": (Spectral, lambda: digits(6)[0]),
    "sparse gradient": (
        lambda: nn.Sequential(nn.Embedding(17, 8, sparse=True), nn.Flatten(), nn.Linear(512, 10)),
        lambda: (digits(6)[0].flatten(1) * 16).long(),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_weights_of_other_kinds_trace_and_save(name, tmp_path):
    build, inputs = KINDS[name]
    model, x = build().eval(), inputs()
    program = trace(model, (x,))
    program.save(tmp_path / "a.sparsify")
    assert torch.equal(Program.load(tmp_path / "a.sparsify")(x), model(x))
    gradients = [torch.autograd.grad(f(x).abs().sum(), list(model.parameters())) for f in (model, program)]
    assert all(torch.equal(w.to_dense(), h.to_dense()) for w, h in zip(*gradients, strict=True))


class Padded(nn.Module):
    """An encoder whose last column is padding in every sample: in eval mode torch's fast path drops it."""

    def __init__(self, *, nested: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
        self.embed, self.fc = nn.Embedding(17, 16), nn.Linear(16, 10)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, ids):
        return self.fc(self.encoder(self.embed(ids), src_key_padding_mask=ids == 0).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fast_path_of_transformer_encoders_is_named():
    ids = (digits(8)[0].flatten(1)[:, 2:8] * 16).long().clamp(min=1)
    ids[:, 5] = 0
    trace(Padded(nested=False), (ids,))
    with pytest.raises(TraceError, match="'encoder' is a TransformerEncoder with enable_nested_tensor=True"):
        trace(Padded(nested=True), (ids,))


class Inference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        with torch.inference_mode():
            scale = x.norm()
        return self.fc(x.flatten(1)) * scale


def test_inference_mode_is_named():
    with pytest.raises(TraceError, match=r"Use torch\.no_grad instead of torch\.inference_mode") as caught:
        trace(Inference(), (digits(4)[0],))
    assert caught.value.__cause__ is not None


def test_a_call_is_checked_however_it_is_written() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.head(x + y)

    x = torch.ones(2, 4)
    program = trace(TwoInputs(), (x, x))
    assert program.plain_inputs == 2
    assert program.clone().plain_inputs == 2
    assert program(x, x).shape == (2, 3)
    for args, kwargs in (((x,), {}), (([x, x],), {}), ((x, x, x), {}), ((x,), {"z": x})):
        with pytest.raises(TraceError, match="traced with the arguments x, y"):
            program(*args, **kwargs)
    with pytest.raises(TraceError, match="shape"):
        program(x, x[:, :3])
