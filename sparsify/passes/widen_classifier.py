"""``widen-classifier``: add a logit for the class "unknown" to the K logits of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx, nn

from sparsify.errors import PassError
from sparsify.ir import PHASES, Program, Stage, TensorSpec, surgery
from sparsify.ir.classifier import Classifier, classifier, replayed
from sparsify.passes.base import CHANGED, UNCHANGED, Effect, Kept, Pass, PassLog
from sparsify.passes.options import Range, option

aten = torch.ops.aten
SCORES = ("known", "odds")
CHILD = "unknown_logit"
"""Name of the module, a child of the classifier, that holds the new row."""


@dataclass(frozen=True)
class WidenClassifier(Pass):
    """Make the train phase return K + 1 logits, the last one for "unknown"; the eval phase keeps K logits and gains two outputs.

    The classifier is the linear layer or convolution that the logits come from; it is found in the graph. The new row is a separate layer
    next to it, ``<classifier>.unknown_logit``, so the model's parameters keep their names and shapes, and its outputs in eval mode stay the
    same bit for bit. With p = softmax over all K + 1 logits, the eval phase also returns ``ood_score`` [N], higher = more in-distribution,
    and ``unknown`` [N], the p of the unknown class. Each entry of the new row is copied from a class drawn at random, so that the row
    starts out like the others.

    Raises:
        PassError: If the score is unknown, the classifier cannot be found, or the program already has the new row or an output of that
            name.
    """

    name: ClassVar = "widen-classifier"
    requires: ClassVar = (Stage.TRACED, Stage.MASKED)
    effects: ClassVar = Effect.GRAPH | Effect.NAMES

    score: str = option(
        "known",
        "ood_score: known, the highest p of a class; or odds, the log-odds of known against unknown",
        choices=SCORES,
    )
    seed: int = option(0, "seed of the new row's initial values", within=Range(0, 2**63 - 1))

    @property
    def preserves(self) -> Mapping[str, Kept]:
        return {"train": CHANGED, "eval": UNCHANGED}

    def run(self, program: Program) -> PassLog:
        log = PassLog(self.name)
        taken = {"ood_score", "unknown"} & {*program.output_names("eval")}
        if taken and any(name.split(".")[-2:-1] == [CHILD] for name, _ in program.named_parameters()):
            raise PassError(
                f"{self.name}: {program.name!r} has an unknown class already, from an earlier {self.name}. To train it on, leave the "
                f"wrapper out (rigl, not widened(rigl) or moon(rigl)), and the class stays; or begin with a trace of the model."
            )
        if taken:
            raise PassError(
                f"{self.name}: {program.name!r} already has an output {sorted(taken)[0]!r}, the name of one that the pass adds. Give that "
                f"output of the model another name."
            )
        found = {phase: classifier(program, phase) for phase in PHASES}
        names = {phase: (layer.weight, layer.bias) for phase, layer in found.items()}
        if names["train"] != names["eval"]:
            raise PassError(
                f"{self.name}: the logits come from {names['train'][0]!r} in training and {names['eval'][0]!r} in eval mode. Return "
                f"those of one layer."
            )
        rows = self._rows(program, *names["train"])
        for phase in PHASES:
            self._join(program, phase, found[phase], rows)
        log.change(names["train"][0])
        return log

    def _rows(self, program: Program, weight: str, bias: str | None) -> tuple[str, ...]:
        """Register the new row's weight, and a bias if the classifier has one; returns their names."""
        generator, rows = torch.Generator().manual_seed(self.seed), list[str]()
        for name in (weight, *([bias] if bias else [])):
            owner, _, leaf = name.rpartition(".")
            values = program.tensor(name).detach()
            drawn = torch.randint(len(values), (1, *values.shape[1:]), generator=generator)
            rows.append(f"{owner}.{CHILD}.{leaf}" if owner else f"{CHILD}.{leaf}")
            surgery.add_state(program, rows[-1], nn.Parameter(values.gather(0, drawn.to(values.device))))
        return tuple(rows)

    def _join(self, program: Program, phase: str, found: Classifier, rows: tuple[str, ...]) -> None:
        layer, spec = found.layer, found.logits.meta["spec"]
        batch, classes = spec.shape
        states = [surgery.state_node(program, phase, name, before=layer.node) for name in rows]
        swapped = dict(zip(filter(None, (layer.weight, layer.bias)), states, strict=True))
        unknown = surgery.call_like(
            program, phase, layer.node, layer.node, swapped, spec=surgery.respec(layer.node, layer.axis, 1)
        )
        anchor = unknown = replayed(program, phase, found, unknown, 1)

        def call(target: Any, arguments: Sequence[Any], shape: Sequence[int | str]) -> fx.Node:
            nonlocal anchor
            made = TensorSpec("", tuple(shape), spec.dtype)
            anchor = surgery.call_after(program, phase, anchor, target, arguments, spec=made)
            return anchor

        joined = call(aten.cat.default, ([found.logits, unknown], 1), (batch, classes + 1))
        if phase == "train":
            surgery.replace_output(program, phase, "logits", joined)
            return
        shares = call(aten.softmax.int, (joined, 1), (batch, classes + 1))
        share = call(aten.select.int, (shares, 1, classes), (batch,))
        if self.score == "known":
            score = call(
                aten.amax.default, (call(aten.slice.Tensor, (shares, 1, 0, classes), spec.shape), [1]), (batch,)
            )
        else:
            known = call(aten.logsumexp.default, (found.logits, [1]), (batch,))
            score = call(aten.sub.Tensor, (known, call(aten.select.int, (unknown, 1, 0), (batch,))), (batch,))
        surgery.append_output(program, phase, "ood_score", score)
        surgery.append_output(program, phase, "unknown", share)
