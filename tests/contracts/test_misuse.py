"""Arguments of the wrong kind at every public door: refused with what was expected and found, never by an error of Python."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import ExportError, PassError, RecipeError, SparsifyError, TraceError, TrainingError
from tests.cases import digits

X = digits(32)[0].flatten(1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


PROGRAM = sp.trace(network(), (X,)).eval()


def attached(method=None, program=None, optimizer=None, **options):
    traced = sp.trace(network(), (X,), check=False).train()
    optimizer = optimizer or torch.optim.SGD(traced.parameters(), lr=0.1)
    return sp.attach(
        method or sp.methods.gmp(density=0.5), program or traced, optimizer, **{"total_steps": 20, **options}
    )


MISUSES = {
    "the name of a method": (lambda _: attached(method="rigl"), TrainingError, "takes a method first, found 'rigl'"),
    "a method that was not called": (
        lambda _: attached(method=sp.methods.gmp),
        TrainingError,
        "found function. Build one",
    ),
    "a model to attach": (lambda _: attached(program=network()), TrainingError, "program second, found Sequential"),
    "the class of an optimizer": (lambda _: attached(optimizer=torch.optim.SGD), TrainingError, "needs an optimizer"),
    "a share as total_steps": (lambda _: attached(total_steps=2.5), TrainingError, "total_steps .* found 2.5"),
    "no total_steps": (lambda _: attached(total_steps=None), TrainingError, "total_steps .* found None"),
    "a truth as total_steps": (lambda _: attached(total_steps=True), TrainingError, "total_steps .* found True"),
    "a text as seed": (lambda _: attached(seed="a"), TrainingError, "seed .* found 'a'"),
    "a text as density": (lambda _: sp.methods.rigl(density="0.1"), RecipeError, "density .* found '0.1'"),
    "no model": (lambda _: sp.trace(None, (X,)), TraceError, "takes a torch.nn.Module, found NoneType"),
    "a class as model": (lambda _: sp.trace(nn.Linear, (X,)), TraceError, "found the class Linear"),
    "a function as model": (lambda _: sp.trace(torch.relu, (X,)), TraceError, "found builtin_function"),
    "no inputs": (lambda _: sp.trace(network(), None), TraceError, "tuple of inputs, found None"),
    "a role without a place": (lambda _: sp.trace(network(), (X,), outputs="logits"), TraceError, "found 'logits'"),
    "a pipeline on a model": (
        lambda _: sp.Pipeline.parse("eliminate-dead-code")(network()),
        PassError,
        "takes a program, found Sequential",
    ),
    "a model to export": (lambda p: sp.export(network(), p, inputs=[X]), ExportError, "program first, found Seq"),
    "arguments in the wrong order": (lambda p: sp.export(p, PROGRAM, inputs=[X]), ExportError, "program first, found"),
    "no path": (lambda _: sp.export(PROGRAM, None, inputs=[X]), ExportError, "path of the file second, found None"),
    "arrays": (lambda p: sp.export(PROGRAM, p, inputs=[X.numpy()]), ExportError, "should be tensors .* found ndarray"),
    "batches": (lambda p: sp.export(PROGRAM, p, inputs=[(X,), (X,)]), ExportError, "should be tensors .* found tuple"),
}


@pytest.mark.parametrize(("misuse", "kind", "message"), MISUSES.values(), ids=list(MISUSES))
def test_an_argument_of_another_kind_is_refused_with_what_was_found(misuse, kind, message, tmp_path):
    assert issubclass(kind, SparsifyError)
    with pytest.raises(kind, match=message):
        misuse(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
