"""Vision and language transformers from small random configurations, traced, masked, and compared with eager."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir import Program, trace
from sparsify.passes import Pipeline

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def vit():
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4, num_channels=1, num_labels=10)
    model = transformers.ViTForImageClassification(config)
    model.set_attn_implementation("eager")
    return model, {"pixel_values": torch.rand(3, 1, 16, 16)}


def bert():
    config = transformers.BertConfig(**SMALL, vocab_size=50, max_position_embeddings=16, num_labels=4)
    model = transformers.BertForSequenceClassification(config)
    model.set_attn_implementation("eager")
    return model, {"input_ids": torch.randint(50, (3, 12)), "attention_mask": torch.ones(3, 12, dtype=torch.long)}


def rotary(name):
    """A causal language model of one layer, whose rotary embedding lies in no_grad and autocast regions."""

    def build():
        config = getattr(transformers, f"{name}Config")(
            **SMALL | {"num_hidden_layers": 1}, vocab_size=50, max_position_embeddings=16
        )
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        model.config.use_cache = False
        return model, {"input_ids": torch.randint(50, (3, 12))}

    return build


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "build", [vit, bert, rotary("GPTNeoX"), rotary("Llama")], ids=["vit", "bert", "gpt_neox", "llama"]
)
def test_both_phases_equal_eager(build, tmp_path):
    torch.manual_seed(0)
    model, inputs = build()
    program = trace(model, (), inputs)
    assert program.dynamic_batch
    for training in (True, False):
        model.train(training), program.train(training)
        logits, grads = [], []
        for callee in (model, program):
            torch.manual_seed(1)
            logits.append(callee(**inputs).logits)
            if training:
                parameters = list(model.parameters())
                grads.append(torch.autograd.grad(logits[-1].square().sum(), parameters, allow_unused=True))
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-6)
        for want, have in zip(*grads, strict=True) if training else ():
            assert (want is None) == (have is None)
            if want is not None:
                torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-6)
    head = " | attach-calibration-head" if logits[0].ndim == 2 else ""
    masked = Pipeline.parse("insert-masks{density=0.1}" + head)(program.eval())
    assert masked.outputs(**inputs)["probabilities" if head else "logits"].shape == logits[0].shape
    masked.save(tmp_path / "m.sparsify")
    assert Program.load(tmp_path / "m.sparsify").text() == masked.text()
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert {f"{name}.weight" for name in linear} <= {site.name for site in program.maskable()}


def test_a_failing_model_is_refused_with_its_reason():
    model, inputs = vit()
    with pytest.raises(TraceError, match="fails on example inputs"):
        trace(model, (), {"pixel_values": inputs["pixel_values"][:, :, :8]})
