"""Arguments of the wrong kind at every public door: refused with what was expected and found, never by an error of Python."""

# Every call here is one that a type checker refuses.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lr

import sparsify as sp
from sparsify import passes
from sparsify.errors import ExportError, LoadError, PassError, RecipeError, SparsifyError, TraceError, TrainingError
from sparsify.parts.allocation import global_saliency
from tests.cases import digits

X = digits(32)[0].flatten(1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


PROGRAM = sp.trace(network(), (X,)).eval()


def attached(method=None, program=None, optimizer=None, **options):
    traced = PROGRAM.clone().train()
    optimizer = optimizer or torch.optim.SGD(traced.parameters(), lr=0.1)
    return sp.attach(
        method or sp.methods.gmp(density=0.5), program or traced, optimizer, **{"total_steps": 20, **options}
    )


def differentiable():
    return torch.optim.SGD(PROGRAM.parameters(), lr=0.1, differentiable=True)


MISUSES = {
    "the name of a method": (lambda _: attached(method="rigl"), TrainingError, "takes a method first, found 'rigl'"),
    "a method that was not called": (
        lambda _: attached(method=sp.methods.gmp),
        TrainingError,
        "found the function gmp. Build one",
    ),
    "a model to attach": (lambda _: attached(program=network()), TrainingError, "program second, found Sequential"),
    "the class of an optimizer": (lambda _: attached(optimizer=torch.optim.SGD), TrainingError, "needs an optimizer"),
    "a share as total_steps": (lambda _: attached(total_steps=2.5), TrainingError, "total_steps .* found 2.5"),
    "no total_steps": (lambda _: attached(total_steps=None), TrainingError, "total_steps .* found None"),
    "a truth as total_steps": (lambda _: attached(total_steps=True), TrainingError, "total_steps .* found True"),
    "a text as seed": (lambda _: attached(seed="a"), TrainingError, "seed .* found 'a'"),
    "an empty epoch": (lambda _: attached(epoch_steps=0), TrainingError, "epoch_steps .* at least 1, found 0"),
    "a differentiable step": (
        lambda _: attached(program=PROGRAM.clone(), optimizer=differentiable()),
        TrainingError,
        "Make it with differentiable=False",
    ),
    "a trainer as optimizer": (lambda _: attached(optimizer=attached()), TrainingError, "found SparseTrainer"),
    "labels of another kind": (
        lambda _: attached().loss(torch.rand(2, 10), torch.rand(2)),
        TrainingError,
        r"class numbers, int \[N\].* target float32 \[2\]",
    ),
    "a text as density": (lambda _: sp.methods.rigl(density="0.1"), RecipeError, "density .* found '0.1'"),
    "a percentage as density": (lambda _: sp.methods.rigl(density=90), RecipeError, "found 90. 90 % is 0.9"),
    "no density above 0": (lambda _: sp.methods.imp(density=-1), RecipeError, "density .* found -1"),
    "sparsity": (lambda _: sp.methods.rigl(sparsity=0.9), RecipeError, r"no argument 'sparsity'.*write density=0\.1\."),
    "a percentage as sparsity": (lambda _: sp.methods.rigl(sparsity=90), RecipeError, "density=0.1 for sparsity 0.9"),
    "an option that is none": (
        lambda _: sp.methods.rigl(density=0.1, normalize="x"),
        RecipeError,
        "Nearest: normalise",
    ),
    "a number as pattern": (lambda _: sp.methods.rigl(density=0.1, pattern=3), RecipeError, "pattern should be a text"),
    "a number as globs": (
        lambda _: sp.methods.rigl(density=0.1, keep_dense=3),
        RecipeError,
        "a list of texts, found 3",
    ),
    "one glob": (lambda _: sp.methods.rigl(density=0.1, keep_dense="fc*"), RecipeError, r"Write \['fc\*'\]"),
    "a name as allocation": (lambda _: sp.methods.rigl(density=0.1, allocation="erk"), RecipeError, "such as erk"),
    "gradients before training": (
        lambda _: sp.methods.rigl(density=0.1, allocation=global_saliency),
        RecipeError,
        "starts from random masks, whose density global_saliency cannot split",
    ),
    "a number to wrap": (lambda _: sp.methods.cigl(3), RecipeError, "cigl takes a method first, found 3"),
    "a function to wrap": (
        lambda _: sp.methods.cigl(sp.methods.rigl),
        RecipeError,
        "found the function rigl. Build one",
    ),
    "nothing to wrap": (lambda _: sp.methods.cigl(), RecipeError, "missing a required argument: 'base'"),
    "a number as passes": (lambda _: sp.Pipeline(3), PassError, "passes should be a list of Pass, found 3"),
    "a text as passes": (lambda _: sp.Pipeline("fold-masks"), PassError, "passes should be a list"),
    "no pipeline": (lambda _: sp.Pipeline.parse(None), PassError, "text should be a text, found None"),
    "an option of a pass": (
        lambda _: passes.InsertMasks(density="x"),
        PassError,
        "option density should be a number, found 'x'",
    ),
    "an option no pass has": (lambda _: passes.InsertMasks(densty=1), PassError, "Nearest: density"),
    "a folder to save": (lambda p: PROGRAM.save(p.parent), LoadError, "is a folder. Give the file to write"),
    "no place to save": (lambda _: PROGRAM.save(None), LoadError, "path should be a text or a path, found None"),
    "a place that is none": (lambda _: PROGRAM.save("/proc/none/x"), LoadError, "cannot write /proc/none/x"),
    "a number to load": (lambda _: sp.Program.load(3), LoadError, "found 3"),
    "a folder to load": (lambda p: sp.Program.load(p.parent), LoadError, "is a folder"),
    "a program to trace": (lambda _: sp.trace(PROGRAM, (X,)), TraceError, "is a trace already"),
    "arrays to trace": (
        lambda _: sp.trace(network(), (X.numpy(),)),
        TraceError,
        "found ndarray. Convert it with torch",
    ),
    "two inputs": (
        lambda _: PROGRAM(X, X),
        TraceError,
        "traced with the arguments input; found 2 by position",
    ),
    "no input": (lambda _: PROGRAM(), TraceError, "arguments input; found none: missing"),
    "an input by name": (lambda _: PROGRAM(x=X), TraceError, "arguments input; found x: missing"),
    "a folder to export": (lambda p: sp.export(PROGRAM, p.parent, inputs=[X]), ExportError, "is a folder"),
    "no model": (lambda _: sp.trace(None, (X,)), TraceError, "takes a torch.nn.Module, found None"),
    "a class as model": (lambda _: sp.trace(nn.Linear, (X,)), TraceError, "found the class Linear"),
    "a function as model": (lambda _: sp.trace(torch.relu, (X,)), TraceError, "found builtin_function"),
    "no inputs": (lambda _: sp.trace(network(), None), TraceError, "tuple of arguments .* found None"),
    "a role without a place": (lambda _: sp.trace(network(), (X,), outputs="logits"), TraceError, "found 'logits'"),
    "a pipeline on a model": (
        lambda _: sp.Pipeline.parse("eliminate-dead-code")(network()),
        PassError,
        "takes a program, found Sequential",
    ),
    "a model to export": (lambda p: sp.export(network(), p, inputs=[X]), ExportError, "program first, found Seq"),
    "arguments in the wrong order": (lambda p: sp.export(p, PROGRAM, inputs=[X]), ExportError, "program first, found"),
    "no path": (lambda _: sp.export(PROGRAM, None, inputs=[X]), ExportError, "path of the file second, found None"),
    "arrays": (
        lambda p: sp.export(PROGRAM, p, inputs=[X.numpy()]),
        ExportError,
        "should be tensors .* found a list of ndarray",
    ),
    "batches": (
        lambda p: sp.export(PROGRAM, p, inputs=[(X,), (X,)]),
        ExportError,
        "should be tensors .* found a list of a tuple of Tensor",
    ),
}


@pytest.mark.parametrize(("misuse", "kind", "message"), MISUSES.values(), ids=list(MISUSES))
def test_an_argument_of_another_kind_is_refused_with_what_was_found(misuse, kind, message, tmp_path):
    assert issubclass(kind, SparsifyError)
    with pytest.raises(kind, match=message):
        misuse(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


CONTROL_FLOW = {
    "if": lambda h: -h if h.sum() > 0 else h,
    "while": lambda h: h * len([1 for _ in range(int(h.abs().sum()))]),
    "a slice": lambda h: h[: int(h[0, 0] > 0)],
}


@pytest.mark.parametrize("name", CONTROL_FLOW)
def test_control_flow_on_values_is_told_once_and_nothing_else_is_printed(name, capfd):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            return CONTROL_FLOW[name](self.head(x))

    with pytest.raises(TraceError, match=r"cannot capture Net .* depends on tensor values by torch\.where"):
        sp.trace(Net(), (X,))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


SCHEDULERS = {
    "LambdaLR": lambda o: lr.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr.StepLR(o, 2),
    "MultiStepLR": lambda o: lr.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr.ChainedScheduler([lr.ConstantLR(o, total_iters=3), lr.LinearLR(o)]),
    "LinearLR": lr.LinearLR,
    "ExponentialLR": lambda o: lr.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: lr.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: lr.CosineAnnealingWarmRestarts(o, 4),
    "OneCycleLR": lambda o: lr.OneCycleLR(o, 0.1, total_steps=20),
    "CyclicLR": lambda o: lr.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "ReduceLROnPlateau": lambda o: lr.ReduceLROnPlateau(o, patience=0, threshold=1e6),
    "ChainedScheduler": lambda o: lr.ChainedScheduler([lr.ExponentialLR(o, 0.9), lr.StepLR(o, 2)]),
    "SequentialLR": lambda o: lr.SequentialLR(o, [lr.LinearLR(o), lr.ExponentialLR(o, 0.9)], [3]),
}


def test_the_schedulers_that_are_tried_are_all_that_torch_has():
    assert {*SCHEDULERS} == {*lr.__all__} - {"LRScheduler"}


def pair(program):
    """Two optimizers, with the weights in one and the biases in the other."""
    parts = [[p for p in program.parameters() if (p.ndim > 1) == weights] for weights in (True, False)]
    return [torch.optim.SGD(part, lr=0.1, momentum=0.9) for part in parts]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("optimizers", [1, 2])
def test_a_learning_rate_scheduler_over_a_trainer_is_one_over_its_optimizer(name, optimizers):
    def rates(scheduled):
        program = PROGRAM.clone().train()
        made = [torch.optim.SGD(program.parameters(), lr=0.1, momentum=0.9)] if optimizers == 1 else pair(program)
        trainer = sp.attach(sp.methods.set(density=0.5, update_every=4), program, made, total_steps=20)
        assert isinstance(trainer, torch.optim.Optimizer) and isinstance(trainer.optimizer, torch.optim.Optimizer)
        scheduler, seen = SCHEDULERS[name](scheduled(trainer)), []
        for _ in range(6):
            loss = program(X).square().mean()
            loss.backward()
            trainer.step()
            trainer.zero_grad()
            assert all(p.grad is None for p in program.parameters())
            scheduler.step(*([loss.item()] if name == "ReduceLROnPlateau" else []))
            seen.append([group["lr"] for group in trainer.param_groups])
        assert trainer.steps == 6 and trainer.counts["rounds"] == 1
        return seen

    wanted = rates(lambda trainer: trainer.optimizer)
    assert len({*map(tuple, wanted)}) > 2
    assert rates(lambda trainer: trainer) == wanted


def test_one_optimizer_is_handed_out_as_it_is_and_two_as_one_that_can_be_saved():
    program = PROGRAM.clone().train()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    assert attached(program=program, optimizer=optimizer).optimizer is optimizer
    program = PROGRAM.clone().train()
    trainer = attached(program=program, optimizer=pair(program))
    program(X).square().mean().backward()
    trainer.step()
    joined = trainer.optimizer
    saved = copy.deepcopy(joined.state_dict())
    copied = pickle.loads(pickle.dumps(joined))
    assert [*map(len, (copied.state, copied.param_groups, copied.each))] == [4, 2, 2]
    for entry in joined.state.values():
        entry["momentum_buffer"].zero_()
    joined.load_state_dict(saved)
    for mine, theirs in zip(joined.state.values(), copied.state.values(), strict=True):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"]) and mine["momentum_buffer"].any()
    with pytest.raises(TrainingError, match="of 0 optimizers, and 2 are attached"):
        joined.load_state_dict({})
    for refused in (trainer, joined):
        with pytest.raises(TrainingError, match="cannot be added during a run"):
            refused.add_param_group({"params": []})
        with pytest.raises(TrainingError, match="calls no hooks"):
            refused.register_step_post_hook(print)
    again = PROGRAM.clone().train()
    with pytest.raises(TrainingError, match="found SparseTrainer"):
        sp.attach(sp.methods.gmp(density=0.5), again, [trainer], total_steps=20)


def test_a_scheduled_trainer_is_copied_without_its_scheduler():
    trainer = attached(method=sp.methods.set(density=0.5, update_every=4))
    lr.StepLR(trainer, 2)
    copied = copy.deepcopy(trainer)
    copied.program(X).square().mean().backward()
    copied.step()
    assert (trainer.steps, copied.steps) == (0, 1)
