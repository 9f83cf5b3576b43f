"""A query that may look at nothing gets 0 in the file, as it does in PyTorch, whether its mask says so by False or by -inf."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from sparsify.exporters import export
from sparsify.ir import trace


class Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.qkv, self.kind = nn.Linear(16, 48), kind

    def forward(self, x, mask):
        q, k, v = self.qkv(x).view(x.shape[0], x.shape[1], 3, 2, 8).permute(2, 0, 3, 1, 4)
        mask = mask[:, None]
        if self.kind == "numbers":
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kind", ["truth values", "numbers"])
def test_a_query_that_sees_nothing_gets_zero(kind, tmp_path):
    torch.manual_seed(0)
    x, mask = torch.randn(6, 5, 16), torch.rand(6, 5, 5) > 0.3
    mask[2, 3] = False
    model = Attention(kind).eval()
    program = trace(model, (x, mask))
    want = model(x, mask).detach()
    assert bool((want[2, 3] == 0).all()) and bool((want[2, 2] != 0).all())
    result = export(program, tmp_path / "m.onnx", inputs=(x, mask))
    assert result.parity.units == 80 and program.text() == trace(model, (x, mask)).text()
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    got = np.asarray(session.run(None, {"x": x.numpy(), "mask": mask.numpy()})[0])
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert bool((got[2, 3] == 0).all())
