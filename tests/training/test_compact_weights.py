"""Training with weights that are stored compact: the masks of masked training, states that fit both, and loops as users write them."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import TrainingError, TrainingWarning
from sparsify.ir.sites import layouts
from sparsify.methods import build
from sparsify.methods.registry import layers
from sparsify.methods.registry import options as known_options
from sparsify.parts.averaging import running_mean
from tests.cases import digits

STEPS = 20
METHODS = (
    "static", "set", "rigl", "itop", "dst-ee", "gmp", "granet", "one-shot", "imp", "distilled(rigl)", "averaged(set)",
    "agent(set)", "agent(granet)", "agent(imp)", "weight-dropout(granet)", "cigl(set)", "cigl(agent(rigl))", "agent(cigl(set))",
)  # fmt: skip
DENSE_AT_FIRST = ("gmp", "granet", "one-shot", "imp")
WEIGHTS = {"conv.weight", "wide.weight", "twice.weight"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.wide = nn.Linear(32 * 4, 64)
        self.twice = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.norm(self.conv(torch.relu(self.stem(x))))), 2)
        return self.head(torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.wide(x.flatten(1))))))))


@functools.cache
def traced():
    """The program that loops train copies of."""
    torch.manual_seed(0)
    return sp.trace(Net().double(), (digits(2)[0].double(),))


class Loop:
    """A loop as a user writes it, in float64."""

    def __init__(
        self,
        method="rigl",
        pattern="grouped:16",
        *,
        compact="always",
        optimizer=None,
        steps=STEPS,
        options=None,
        **given,
    ):
        options = {"density": 0.5, "pattern": pattern, **(options or {})}
        base = layers(method)[-1]
        rounds = {"update_every": 3} if "update_every" in known_options(base) else {}
        self.program = traced().clone().train()
        self.optimizer = (optimizer or sgd)(self.program.parameters())
        if method.startswith("distilled"):
            given["teacher"] = lambda x: x.flatten(1)[:, :10]
        if "agent" in method:
            given |= {"epoch_steps": 5, "sweep": lambda: (functools.partial(self.loss_of, batch) for batch in range(3))}
        self.trainer = sp.attach(
            build(method, {**options, **rounds}), self.program, self.optimizer, total_steps=steps, seed=1, compact=compact,
            **given,
        )  # fmt: skip
        self.masks: list[dict[str, torch.Tensor]] = []

    def loss(self):
        return self.loss_of(self.trainer.steps)

    def loss_of(self, batch, size=8):
        images, target = digits(640)
        at = slice(batch * size, (batch + 1) * size)
        x = images[at].double()
        return self.trainer.loss(self.program(x), target[at], inputs=x)

    def run(self, steps=STEPS, step=None):
        for _ in range(steps):
            if step is None:
                loss = self.loss()
                loss.backward()
                self.trainer.step(self.loss)
                self.optimizer.zero_grad()
            else:
                step(self)
            self.masks.append({name: mask.clone() for name, mask in self.program.masks().items()})
        return self

    def saved(self):
        file = io.BytesIO()
        torch.save([self.program.state_dict(), self.optimizer.state_dict(), self.trainer.state_dict()], file)
        return file.getvalue()

    def load(self, saved, order=(0, 1, 2)):
        parts = torch.load(io.BytesIO(saved), weights_only=True)
        for place in order:
            (self.program, self.optimizer, self.trainer)[place].load_state_dict(parts[place])
        return self


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


def assert_same(have, want, *, bits=False):
    for name, value in want.program.state_dict().items():
        other = have.program.state_dict()[name]
        assert torch.equal(other, value) if bits or value.dtype is torch.bool else torch.allclose(other, value), name
    first, second = have.optimizer.state_dict()["state"], want.optimizer.state_dict()["state"]
    assert first.keys() == second.keys()
    for place, entries in second.items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                assert first[place][key].shape == value.shape
                assert torch.equal(first[place][key], value) if bits else torch.allclose(first[place][key], value)


@pytest.mark.parametrize(
    ("method", "pattern", "optimizer"),
    [
        *((method, "grouped:16", sgd) for method in METHODS),
        *((method, "grouped:16:learned", sgd) for method in ("set", "rigl", "granet", "agent(rigl)", "cigl(rigl)")),
        *((method, "grouped:8x4", adamw) for method in ("rigl", "gmp", "agent(rigl)", "cigl(rigl)")),
    ],
)
def test_masks_and_weights_are_those_of_masked_training(method, pattern, optimizer):
    compact = Loop(method, pattern, optimizer=optimizer)
    begun = set(layouts(compact.program))
    assert begun == (set() if layers(method)[-1] in DENSE_AT_FIRST else WEIGHTS)
    compact.run(STEPS - 1)
    whole = {"conv.weight"} if layers(method)[-1] in ("gmp", "imp") else set()
    assert set(layouts(compact.program)) == WEIGHTS - whole
    compact.run(1)
    assert not layouts(compact.program), "dense again after the last step"
    masked = Loop(method, pattern, optimizer=optimizer, compact="never").run()
    for have, want in zip(compact.masks, masked.masks, strict=True):
        assert all(torch.equal(have[name], mask) for name, mask in want.items())
    assert_same(compact, masked)
    compact.trainer.finish([digits(16)[0].double()])
    masked.trainer.finish([digits(16)[0].double()])
    assert_same(compact, masked)
    compact.program.verify()
    calls = [[str(node.target) for node in loop.program.phases["train"].graph.nodes] for loop in (compact, masked)]
    assert calls[0] == calls[1]


@pytest.mark.parametrize(
    "method", ["rigl", "gmp", "granet", "agent(rigl)", "agent(granet)", "agent(imp)", "cigl(rigl)", "cigl(agent(set))"]
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_resumed_run_has_the_same_bits(method, order):
    whole = Loop(method)
    whole.run(10)
    saved = whole.saved()
    whole.run(STEPS - 10)
    resumed = Loop(method).load(saved, order).run(STEPS - 10)
    assert_same(resumed, whole, bits=True)
    assert resumed.trainer.forms == whole.trainer.forms


def test_what_is_saved_is_dense_and_fits_masked_training():
    compact = Loop("set").run(10)
    state = compact.optimizer.state_dict()["state"]
    shapes = {tuple(entry["momentum_buffer"].shape) for entry in state.values()}
    assert (64, 128) in shapes and compact.program.get_parameter("wide.weight").shape < (64, 64)
    assert compact.program.state_dict()["wide.weight"].shape == compact.program.weight("wide.weight").shape == (64, 128)
    parts = torch.load(io.BytesIO(compact.saved()), weights_only=True)
    masked = Loop("set", compact="never")
    masked.program.load_state_dict(parts[0])
    masked.optimizer.load_state_dict(parts[1])
    masked.trainer.load_state_dict({**parts[2], "compact": {"compact": [], "since": {}}})
    assert_same(masked.run(10), compact.run(10))


def test_memory_of_weights_gradients_and_optimizer_state():
    torch.manual_seed(0)
    wide = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(256, 256), nn.ReLU())))
    program = sp.trace(wide, (torch.rand(2, 256),)).train()
    optimizer = torch.optim.AdamW(program.parameters())
    trainer = sp.attach(build("static", {"density": 0.1, "pattern": "grouped:64"}), program, optimizer, total_steps=10)
    assert set(layouts(program)) == set(program.masks()), trainer.forms
    program(torch.rand(8, 256)).square().mean().backward()
    trainer.step()
    held = sum(p.numel() * (2 + len([v for v in optimizer.state[p].values() if v.ndim])) for p in program.parameters())
    dense = 4 * 3 * (256 * 256 + 256)  # weights, gradients and two moments
    assert held < 0.13 * dense
    assert trainer.forms == dict.fromkeys(program.masks(), "compact since step 1")


def accumulated(loop):
    for part in range(2):
        x, y = digits(16)
        (loop.trainer.loss(loop.program(x[part::2].double()), y[part::2]) / 2).backward()
    loop.trainer.step()
    loop.optimizer.zero_grad()


def clipped(loop):
    loop.loss().backward()
    nn.utils.clip_grad_norm_(PARAMETERS[id(loop)], 0.1)
    loop.trainer.step()
    loop.optimizer.zero_grad(set_to_none=False)


def with_closure(loop):
    def closure():
        loop.optimizer.zero_grad()
        loss = loop.loss()
        loss.backward()
        return loss

    closure()
    loop.trainer.step(closure)


def keeping_losses(loop):
    loop.__dict__.setdefault("losses", []).append(loop.loss())
    loop.losses[-1].backward()
    loop.trainer.step()
    loop.optimizer.zero_grad()


def in_bfloat16(loop):
    with torch.autocast("cpu", torch.bfloat16):
        loss = loop.loss()
    loss.backward()
    loop.trainer.step()
    loop.optimizer.zero_grad()


def averaging_by_hand(loop):
    loop.loss().backward()
    loop.trainer.step()
    loop.optimizer.zero_grad()
    means = loop.__dict__.setdefault("means", {})
    for name, value in loop.program.state_dict().items():
        if value.is_floating_point():
            means[name] = running_mean(means.get(name), value.clone(), loop.trainer.steps)


PARAMETERS: dict[int, list[nn.Parameter]] = {}


@pytest.mark.parametrize("step", [accumulated, clipped, with_closure, keeping_losses, in_bfloat16, averaging_by_hand])
def test_loops_as_users_write_them(step):
    loops = [Loop("rigl", compact=compact) for compact in ("always", "never")]
    for loop in loops:
        PARAMETERS[id(loop)] = list(loop.program.parameters())
        loop.run(step=step)
    compact, masked = loops
    if step is in_bfloat16:
        assert [loop.program.costs().density for loop in loops] == [0.5, 0.5]
        return
    assert_same(compact, masked)
    if step is averaging_by_hand:
        assert all(torch.allclose(compact.means[name], mean) for name, mean in masked.means.items())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("method", "compact"), [("rigl", "always"), ("gmp", "always"), ("cigl(rigl)", "always"), ("rigl", "never")]
)
def test_a_compiled_program_follows_the_rounds(method, compact):
    torch.compiler.reset()
    loops = [Loop(method, compact=compact), Loop(method, compact=compact)]
    call = torch.compile(loops[0].program, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=64):
        loops[0].run(step=lambda loop: stepped(loop, call))
    loops[1].run(step=lambda loop: stepped(loop, loop.program))
    assert_same(*loops)


def stepped(loop, call):
    images, target = digits(640)
    at = slice(8 * loop.trainer.steps, 8 * loop.trainer.steps + 8)
    nn.functional.cross_entropy(call(images[at].double()), target[at]).backward()
    loop.trainer.step()
    loop.optimizer.zero_grad()


@pytest.mark.parametrize("method", ["rigl", "cigl(rigl)"])
def test_a_copy_of_a_run_goes_on_by_itself(method):
    loop = Loop(method).run(7)
    program, optimizer, trainer = copy.deepcopy((loop.program, loop.optimizer, loop.trainer))
    other = Loop(method, compact="never")
    other.program, other.optimizer, other.trainer = program, optimizer, trainer
    assert set(layouts(program)) == WEIGHTS
    other.run(STEPS - 7)
    loop.run(STEPS - 7)
    assert_same(other, loop, bits=True)


def test_an_average_follows_the_parameters():
    loops = [Loop("rigl", compact=compact) for compact in ("always", "never")]
    averages = list[torch.optim.swa_utils.AveragedModel]()
    for loop in loops:
        loop.run(5)
        averages.append(torch.optim.swa_utils.AveragedModel(loop.program))
    with pytest.warns(TrainingWarning, match=r"copy\.deepcopy copied program 'net' while .*use program\.clone\(\)"):
        loops[0].run(1)
    loops[1].run(1)
    for loop, average in zip(loops, averages, strict=True):
        for _ in range(6, STEPS):
            average.update_parameters(loop.run(1).program)
    assert_same(*loops)
    for have, want in zip(averages[0].parameters(), averages[1].parameters(), strict=True):
        torch.testing.assert_close(have, want)
    assert all("copy.deepcopy" in form for form in loops[0].trainer.forms.values())


def test_a_run_can_be_exported_and_cloned_in_the_middle(tmp_path):
    loop = Loop("set").run(10)
    assert layouts(loop.program)
    images = digits(8)[0].double()
    clone = loop.program.clone().eval()
    torch.testing.assert_close(clone(images), loop.program.eval()(images))
    loop.program.train()
    sp.Program.load(save(loop.program, tmp_path)).verify()
    loop.run(STEPS - 10)
    assert_same(loop, Loop("set", compact="never").run())


def save(program, folder):
    program.save(folder / "program.sparsify")
    return folder / "program.sparsify"


class Own(torch.optim.SGD):
    """An optimizer that may do anything."""


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"compact": "never"}, "it was asked for"),
        ({"pattern": "unstructured"}, "its pattern is unstructured"),
        ({"optimizer": lambda p: Own(p, lr=0.1)}, "Own may depend on the shapes"),
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, "LBFGS may depend on the shapes"),
    ],
)
def test_what_stays_masked_and_why(given, reason):
    loop = Loop(**given)
    assert not layouts(loop.program)
    forms = loop.trainer.forms
    assert forms and all(reason in form and form.startswith("masked: ") for form in forms.values()), forms


def test_a_hook_of_the_loop_keeps_its_weight_masked():
    program = traced().clone().train()
    program.get_parameter("wide.weight").register_hook(lambda gradient: gradient)
    trainer = sp.attach(
        build("set", {"density": 0.5, "pattern": "grouped:16"}), program, sgd(program.parameters()), total_steps=20,
        compact="always",
    )  # fmt: skip
    assert set(layouts(program)) == WEIGHTS - {"wide.weight"}
    assert "a hook of the loop" in trainer.forms["wide.weight"]


def test_an_unknown_choice_is_refused():
    with pytest.raises(TrainingError, match="compact"):
        Loop(compact="sometimes")
