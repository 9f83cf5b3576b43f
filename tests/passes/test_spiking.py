"""Spiking networks: the pass against eager loops, bit for bit, and against numbers by hand."""

from __future__ import annotations

import copy
import math

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import sparsify as sp
from sparsify.errors import PassError
from sparsify.ir.neurons import lif
from sparsify.parts.neurons import RESETS
from tests.cases import CASES, digits

X, Y = digits(64)


class Net(nn.Module):
    """A stem, neurons in place, a shortcut from before the first neurons, one that adds spikes, and a size that forward reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.short = nn.Conv2d(1, 6, 1)
        self.fc = nn.Linear(6 * 16, 10)

    def forward(self, x):
        x, short = self.relu(self.stem(4 * x)), self.short(x)
        x = torch.relu(self.bn(self.conv(x)) + x + short)
        return self.fc(torch.max_pool2d(x, 2).view(x.size(0), -1))


class Eager:
    """The same network with hand-written neurons, as loops over time."""

    def __init__(
        self, net, steps, reset="soft", leak=0.5, threshold=1.0, decay_input=False, detach=False, through=True
    ):
        self.net, self.steps, self.reset, self.leak, self.threshold = net, steps, reset, leak, threshold
        self.decay_input, self.detach, self.through = decay_input, detach, through

    def fired(self, currents):
        v, made = torch.zeros_like(currents[0]), []
        for current in currents:
            v = v if self.through else v.detach()
            u = self.leak * v + ((1 - self.leak) * current if self.decay_input else current)
            x = u - self.threshold
            soft = torch.atan(math.pi * x) / math.pi + 0.5
            o = (x >= 0).to(x.dtype) + (soft - soft.detach())
            made.append(o)
            o = o.detach() if self.detach else o
            v = u - self.threshold * o if self.reset == "soft" else u * (1 - o)
        return torch.cat(made)

    def __call__(self, x):
        net, steps = self.net, self.steps
        y = self.fired([net.stem(4 * x)] * steps)
        y = net.bn(net.conv(y)) + y + net.short(x).repeat(steps, 1, 1, 1)
        y = self.fired(y.chunk(steps))
        y = net.fc(torch.max_pool2d(y, 2).view(y.size(0), -1))
        return y.unflatten(0, (steps, -1)).mean(0)


def spiking(net, text="spiking"):
    return sp.Pipeline.parse(text)(sp.trace(net, (X[:4],)))


OPTIONS = [
    ("spiking", {}),
    ("spiking{steps=1}", {"steps": 1}),
    ("spiking{steps=6 reset=hard leak=0.25 threshold=0.7}", {"steps": 6, "reset": "hard", "leak": 0.25, "threshold": 0.7}),
    ("spiking{decay-input=true detach-reset=true reset=hard}", {"decay_input": True, "detach": True, "reset": "hard"}),
    ("spiking{through-time=false}", {"through": False}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options"), OPTIONS, ids=[text for text, _ in OPTIONS])
def test_outputs_and_gradients_have_the_bits_of_an_eager_loop(text, options):
    net = Net()
    program, eager = spiking(net, text), Eager(copy.deepcopy(net), **{"steps": 4, **options})
    for _ in range(2):  # the second time with other running statistics
        made, wanted = program.train()(X[:9]), eager(X[:9])
        assert torch.equal(made, wanted)
        for given, output in ((program, made), (eager.net, wanted)):
            given.zero_grad()
            nn.functional.cross_entropy(output, Y[:9]).backward()
        gradients = {name: p.grad for name, p in eager.net.named_parameters()}
        assert all(torch.equal(program.get_parameter(name).grad, found) for name, found in gradients.items())
        assert min(float(found.abs().max()) for found in gradients.values()) > 0
    eager.net.eval()
    assert torch.equal(program.eval()(X), eager(X))
    assert len(torch.unique(eager.fired([eager.net.stem(4 * X)] * 4))) == 2


def test_a_neuron_by_hand():
    """leak 0.5, threshold 1, a current of 0.75: u = 0.75, 1.125 (fires), 0.8125, 1.15625 (fires), 0.828125."""
    current, leak, threshold = torch.tensor([0.75]), torch.tensor(0.5), torch.tensor(1.0)
    assert lif(current, leak, threshold, 5, True).tolist() == [0, 1, 0, 1, 0]
    # hard: 0.75, 1.125 (fires, then 0), 0.75, 1.125, 0.75
    assert lif(current, leak, threshold, 5, True, "hard").tolist() == [0, 1, 0, 1, 0]
    # an exact threshold fires: 1, then the potential is 0 again
    assert lif(torch.tensor([1.0]), leak, threshold, 3, True).tolist() == [1, 1, 1]
    # decay_input: u = 0.5 v + 0.5 x with x = 1.5: 0.75, 1.125, then 0.0625 + 0.75
    assert lif(torch.tensor([1.5]), leak, threshold, 3, True, "soft", "atan", None, True).tolist() == [0, 1, 0]
    # currents of each step, for two samples: the first sample gets 1, 0, the second 0.5, 0.75
    steps = torch.tensor([1.0, 0.5, 0.0, 0.75])
    assert lif(steps, leak, threshold, 2, False).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("reset", RESETS)
def test_gradients_of_leak_and_threshold_are_those_of_the_loop(reset):
    program = spiking(Net(), f"spiking{{steps=5 reset={reset} learn=both}}").train()
    eager = Eager(Net(), 5, reset)
    eager.leak, eager.threshold = (torch.tensor(value, requires_grad=True) for value in (0.5, 1.0))
    nn.functional.cross_entropy(program(X[:9]), Y[:9]).backward()
    nn.functional.cross_entropy(eager(X[:9]), Y[:9]).backward()
    for name in ("leak", "threshold"):
        found = [p.grad for key, p in program.named_parameters() if key.endswith(f".{name}")]
        assert len(found) == 2
        assert float(sum(found)) == pytest.approx(float(getattr(eager, name).grad), rel=1e-5)


def test_costs_count_the_layers_of_every_step():
    """The stem is computed once, what follows neurons in each of 4 steps."""
    net = Net()
    plain, made = sp.trace(net, (X[:4],)).costs().macs_dense, spiking(net).costs().macs_dense
    stem, short, conv, fc = 64 * 6 * 9, 64 * 6, 64 * 36 * 9, 960
    assert plain == stem + short + conv + fc
    assert made == stem + short + 4 * (conv + fc)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_network_with_relus_of_a_batch_becomes_spiking_or_is_refused(case, tmp_path):
    program = case.trace()
    try:
        made = sp.Pipeline.parse("spiking{steps=3}")(program)
    except PassError as error:
        assert "ReLU" in str(error) or "batch" in str(error), error
        return
    made.save(tmp_path / "p.sparsify")
    again = sp.Program.load(tmp_path / "p.sparsify").eval()
    inputs = case.args
    for name, value in made.eval().outputs(*inputs).items():
        assert torch.equal(value, again.outputs(*inputs)[name])
        assert value.shape == program.eval().outputs(*inputs)[name].shape


def test_a_sparse_spiking_network_is_trained_and_proved_in_onnx_runtime(tmp_path):
    program = spiking(Net(), "spiking{steps=4 learn=both}")
    optimizer = torch.optim.SGD(program.parameters(), lr=0.05, momentum=0.9)
    trainer = sp.attach(sp.methods.rigl(density=0.3, update_every=5), program, optimizer, total_steps=30)
    for step in range(30):
        rows = torch.arange(16) + 16 * (step % 4)
        nn.functional.cross_entropy(program.train()(X[rows]), Y[rows]).backward()
        trainer.step()
        optimizer.zero_grad()
    trainer.finish()
    folded = sp.Pipeline.parse("fold-masks")(program.eval())
    result = sp.export(folded, tmp_path / "net.onnx", inputs=(X[:8],))
    assert result.parity.decisions > 0
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for count in (1, 3, 64):
        (made,) = session.run(["logits"], {session.get_inputs()[0].name: X[:count].numpy()})
        assert torch.allclose(torch.from_numpy(made), program(X[:count]), atol=1e-5)


def test_relus_that_stay_are_logged_and_other_activations_too():
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU6()
    )
    made, logs = sp.Pipeline.parse("spiking{keep=2}").run(sp.trace(net, (X[:4],)))
    assert dict(logs[0].skipped) == {"2": "asked to stay", "4": "gelu is no ReLU"}
    assert logs[0].changed == ["6"]
    assert [name for name, _ in made.named_buffers()] == ["6.leak", "6.threshold"]


class Fixed(nn.Module):
    def forward(self, x):
        return torch.relu(x.flatten(1)).reshape(4, 64)


class Middle(nn.Module):
    """Its batch is the second dimension where its ReLU is."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(torch.relu(self.fc(x.squeeze(1).transpose(0, 1))).sum(0))


@pytest.mark.parametrize(
    ("net", "text", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU()), "spiking", "has no ReLU to replace"),
        (
            Net(),
            "spiking{keep=nothing}",
            "keep='nothing' matches no module with a ReLU. Modules with one: relu.",
        ),
        (Net(), "spiking | spiking", "has layers of neurons already"),
        (Net(), "average-steps", "averages no logits"),
        (Net(), "spiking{steps=0}", "steps should be in"),
        (Net(), "spiking{surrogate=step}", "no choice 'step'"),
        (Net(), "spiking{encoding=frames}", "the first dimension should be 4*N: the model should lay its steps out"),
        (Middle(), "spiking", "should be N, the batch"),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_what_cannot_be_is_refused(net, text, message):
    with pytest.raises(PassError) as found:
        spiking(net, text)
    assert message in str(found.value)


def test_a_fixed_batch_is_refused():
    with pytest.warns(sp.ir.TraceWarning):
        program = sp.trace(Fixed(), (X[:4],))
    with pytest.raises(PassError, match="fixed batch size"):
        sp.Pipeline.parse("spiking")(program)


def test_frames_of_a_sequence_keep_their_potential(tmp_path):
    """Rows of the images as frames: the same as a loop over the frames, gradients too."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10))
    program = sp.Pipeline.parse("spiking{steps=8 encoding=frames}")(sp.trace(sp.PerStep(net), (X[:4, 0],)))
    eager = copy.deepcopy(net)
    currents = eager[0](4 * X[:16, 0].transpose(0, 1).flatten(0, 1)).chunk(8)
    wanted = eager[2](Eager(None, 8).fired(currents)).unflatten(0, (8, -1)).mean(0)
    made = program.train()(4 * X[:16, 0])
    assert torch.equal(made, wanted)
    nn.functional.cross_entropy(made, Y[:16]).backward()
    nn.functional.cross_entropy(wanted, Y[:16]).backward()
    assert torch.equal(program.get_parameter("model.0.weight").grad, eager[0].weight.grad)
    result = sp.export(sp.Pipeline.parse("deploy")(program.eval()), tmp_path / "frames.onnx", inputs=(X[:4, 0],))
    assert result.parity.largest_error < 1e-5


def test_average_steps_gives_the_mean_of_the_losses_of_all_steps():
    plain, made = spiking(Net()), spiking(Net(), "spiking | average-steps")
    eager = Eager(Net(), 4)
    output = made.train()(X[:9])
    net, x = eager.net, X[:9]
    y = eager.fired([net.stem(4 * x)] * 4)
    y = eager.fired((net.bn(net.conv(y)) + y + net.short(x).repeat(4, 1, 1, 1)).chunk(4))
    logits = net.fc(torch.max_pool2d(y, 2).flatten(1)).chunk(4)
    wanted = sum(nn.functional.cross_entropy(one, Y[:9]) for one in logits) / 4
    assert nn.functional.nll_loss(output, Y[:9]).item() == pytest.approx(wanted.item(), rel=1e-6)
    plain.train()(x)  # both have seen the same batch
    assert torch.equal(made.eval()(X), plain.eval()(X))


@pytest.mark.parametrize(("before", "after"), [(5, 3), (2, 7), (4, 1)])
def test_set_steps_gives_what_a_trace_with_these_steps_gives(before, after, tmp_path):
    changed = spiking(Net(), f"spiking{{steps={before} reset=hard learn=both}} | set-steps{{steps={after}}}")
    direct = spiking(Net(), f"spiking{{steps={after} reset=hard learn=both}}")
    assert changed.text() == direct.text()
    assert torch.equal(changed.eval()(X), direct.eval()(X))
    nn.functional.cross_entropy(changed.train()(X), Y).backward()
    assert all(p.grad is not None or (name.endswith("leak") and after == 1) for name, p in changed.named_parameters())


def test_a_file_of_one_step_compares_currents_with_thresholds(tmp_path):
    program = spiking(Net(), "spiking | set-steps{steps=1}").eval()
    sp.export(program, tmp_path / "one.onnx", inputs=(X[:8],))
    kinds = {node.op_type for node in onnx.load(tmp_path / "one.onnx").graph.node}
    assert {"GreaterOrEqual", "Cast", "Conv"} <= kinds and not kinds & {"Scan", "Concat", "Split", "Loop"}


def test_set_steps_needs_a_spiking_network():
    with pytest.raises(PassError, match="is no spiking network"):
        spiking(Net(), "set-steps{steps=2}")
