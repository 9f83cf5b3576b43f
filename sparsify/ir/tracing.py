"""Trace a model into a `Program` with `torch.export`, once per phase, and prove that the phases behave like the model."""

from __future__ import annotations

import inspect
import random
import re
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from sparsify.arguments import LATER, checked
from sparsify.errors import TraceError
from sparsify.ir.agreement import Causes, batch_of, compare, untouched
from sparsify.ir.binding import Inputs, arguments_of, ordered, signature_of
from sparsify.ir.capture import Captured, capture, first_line
from sparsify.ir.dimensions import BATCH, Declared, Dimensions, Example, Limits, declared, input_names
from sparsify.ir.effects import beside, changed_buffers, place_of, random_draws
from sparsify.ir.flattening import flatten
from sparsify.ir.held_state import attributes_kept, refuse_state
from sparsify.ir.inputs import brief
from sparsify.ir.nodes import PHASES, Stage
from sparsify.ir.own_backwards import OwnBackwards
from sparsify.ir.program import Program
from sparsify.ir.roles import LOGITS, output_names
from sparsify.ir.roles import TraceWarning as TraceWarning
from sparsify.ir.size_ranges import EVERY
from sparsify.ir.state import skeleton
from sparsify.ir.verifier import verify
from sparsify.tasks import Task, kind
from sparsify.tasks.stored import as_task


@checked(
    TraceError,
    model="trace takes a torch.nn.Module, found {found}. Build the model first: sparsify.trace(Net(), (x,)).",
    outputs="outputs should be names with positions or keys, found {found}. Write outputs={{'logits': 1}}.",
)
def trace(
    model: nn.Module,
    inputs: Annotated[Inputs, LATER],
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    dynamic: Annotated[Declared | None, LATER] = None,
    limits: Annotated[Limits | None, LATER] = None,
    outputs: Mapping[str, int | str] | None = None,
    classes: int | None = None,
    task: str | Task | None = None,
    check: bool = True,
) -> Program:
    """Trace ``model`` in training and in eval mode over one set of parameters.

    The program's parameters and buffers are the model's own objects: train the program and the model is trained. The model's
    mode, buffers and gradients and the global RNG are left as they were; lazy modules are initialised.

    Args:
        model: any module that `torch.export` can capture.
        inputs: example: a tensor, a tuple of arguments of ``forward``, or a mapping of them by name (a dictionary that a tokenizer
            makes). The first dimension of each tensor is the batch. A batch of 1 is doubled, unless the model takes no other. Other
            sizes, unless they are declared, and arguments that are not tensors are fixed by the trace. Calls may give arguments by
            position or by name.
        kwargs: further example arguments by name.
        name: of the program; the class name in snake case by default.
        dynamic: names of further dimensions that vary, by input and place: ``{"ids": {1: "T"}, "mask": {1: "T"}}``. Dimensions of one
            name have one size. Inputs are called as `Program.input_specs` calls them: after their argument, and the path inside it.
        limits: smallest and largest size of such dimensions, ``{"T": (1, 512)}``; None in place of the largest: no bound.
        outputs: position (from 0) or key of an output, by the name it gets; ``{"logits": 1}`` where more than one output could be
            the one that the task reads.
        classes: K of the logits [N, K], which decides where exactly one output has K columns.
        task: what the outputs mean, a task of `sparsify.tasks` or its name: the output it reads gets its name (``prediction`` of a
            regression, else ``logits``). None: ``logits`` is the only floating-point output [N, K], or the only one at all.
        check: compare both phases with the model at other sizes: outputs, and gradients in train mode.

    Returns:
        A verified program of stage ``TRACED``, in the model's mode. Its ``ranges`` are the sizes the trace holds for.

    Raises:
        TraceError: If an argument is of another kind or not one of ``forward``, the model cannot be exported, several outputs could be
            the one that the task reads, or a phase does not behave like the model.
        TaskError: If there is no task of that name.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> program = sp.trace(model, torch.rand(2, 4))
        >>> program(torch.rand(5, 4)).shape
        torch.Size([5, 3])
    """
    meaning = None if task is None else kind(task)
    _check_inputs(model, inputs, kwargs or {})
    if isinstance(model, fx.GraphModule) and not list(model.parameters()):
        raise TraceError(
            "the model has no parameters; there is nothing to make sparse. Pass the module that holds the weights."
        )
    args, by_name = arguments_of(inputs)
    mode, given = model.training, ordered(model, args, {**by_name, **(kwargs or {})})
    functions = OwnBackwards()
    with _mode_kept(model):
        _initialise(model, given)
        with untouched(model), attributes_kept(model), _draws_from_torch(model):
            model.train()
            with functions.tried():
                example, dimensions = _accepted(
                    model, given, {} if dynamic is None else dynamic, {} if limits is None else limits
                )
            captured = _captured(model, example, dimensions, functions)
    program = _assemble(
        model,
        captured,
        example,
        name=name or _snake(type(model).__name__),
        chosen=outputs or {},
        classes=classes,
        task=meaning,
    )
    verify(program)
    causes: Causes = {phase: {} for phase in PHASES}
    if check:
        with _mode_kept(model), untouched(model), attributes_kept(model):
            program.ranges, causes = compare(model, program, example, captured["eval"].dimensions, functions.lost())
    elif lost := functions.lost():
        _warn(f"{lost}Gradients were not compared with the model (check=False).")
    _say_limits(program, captured, causes)
    _say_rest(program, _trained_on(task, meaning))
    program.task = None if task is None else as_task(task)
    return program.train(mode)


# --- before the export


def _check_inputs(model: nn.Module, inputs: object, kwargs: Mapping[str, Any]) -> None:
    if isinstance(model, Program):
        raise TraceError(
            f"{model.name!r} is a program, which is a trace already. Use it as it is, program.clone() for a copy, or trace the model "
            f"it was made from."
        )
    if not isinstance(inputs, (Tensor, tuple, list, Mapping)):
        raise TraceError(
            f"inputs should be a tensor, a tuple of arguments or a mapping of them by name, found {brief(inputs)}. "
            f"Write sparsify.trace(model, (x,))."
        )
    arrays = [
        type(x).__name__ for x in pytree.tree_leaves((inputs, dict(kwargs))) if isinstance(x, np.ndarray | np.generic)
    ]
    if arrays:
        raise TraceError(
            f"example inputs should be tensors, found {arrays[0]}. Convert it with torch.from_numpy(x), in the dtype that the model takes."
        )


@contextmanager
def _mode_kept(model: nn.Module) -> Generator[None]:
    """Put the mode of every module back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _initialise(model: nn.Module, example: Example) -> None:
    """Run lazy modules once, which gives their parameters shapes and values."""
    if any(is_lazy(value) for value in (*model.parameters(), *model.buffers())):
        model.eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            _called(model, example)


def _accepted(model: nn.Module, example: Example, dynamic: Declared, limits: Limits) -> tuple[Example, Dimensions]:
    """Return the example and its dimensions that vary, those of size 1 doubled where the model takes two: export specialises a size of 1.

    A batch of 1 that the model insists on is fixed.

    Raises:
        TraceError: If the model fails on the example, or on two where a declared dimension has one.
    """
    batch_of(example)
    example = pytree.tree_map_only(Tensor, _without_gaps, example)
    args, kwargs = example
    arguments = {
        **inspect.signature(model.forward).bind_partial(*args).arguments,
        **kwargs,
    }  # as torch.export names them
    dimensions = declared(input_names(arguments), pytree.tree_leaves(example), dynamic, limits)
    single = {name: 2 for name, size in dimensions.sizes(example).items() if size == 1}
    if not single:
        _run(model, example)
        return example, dimensions
    doubled = dimensions.resized(example, single)
    try:
        _run(model, doubled)
    except TraceError as error:
        if not isinstance(error.__cause__, Exception) or BATCH not in single:
            raise
        fixed = dimensions.without(BATCH)
        example = fixed.resized(example, single)
        _run(model, example)
        return example, fixed
    return doubled, dimensions


@contextmanager
def _draws_from_torch(model: nn.Module) -> Generator[None]:
    """Refuse a model that moved the random state of Python or NumPy; put both back.

    Raises:
        TraceError: If it did: a trace would hold one draw for ever.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
        moved = {
            "Python's random module": random.getstate() != python,
            "numpy.random": not _same(np.random.get_state(), numpy),
        }
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
    if any(moved.values()):
        raise TraceError(
            f"{type(model).__name__} draws from {' and '.join(name for name, did in moved.items() if did)} in forward; a trace would "
            f"hold one draw for ever. Draw with torch (torch.rand, torch.bernoulli) and choose with torch.where."
        )


def _same(first: Any, second: Any) -> bool:
    return first[2] == second[2] and bool(np.array_equal(first[1], second[1]))


def _without_gaps(value: Tensor) -> Tensor:
    """A view as a tensor of its own: its strides would become conditions on sizes."""
    return value.contiguous() if value.layout is torch.strided else value


def _run(model: nn.Module, example: Example) -> None:
    """Run the model once, twice if it may keep a state, and leave it as it was."""
    with torch.no_grad(), untouched(model):
        refuse_state(model, lambda: _called(model, example))


def _called(model: nn.Module, example: Example) -> Any:
    args, kwargs = example
    try:
        return model(*args, **kwargs)
    except Exception as error:
        shapes = [list(x.shape) for x in pytree.tree_leaves(example) if isinstance(x, Tensor)]
        raise TraceError(
            f"{type(model).__name__} fails on example inputs of shapes {shapes}: {type(error).__name__}: {first_line(error)}. "
            f"Check that the data's shape is what the model expects."
        ) from error


# --- the export


def _captured(
    model: nn.Module, example: Example, dimensions: Dimensions, functions: OwnBackwards
) -> dict[str, Captured]:
    """Return both modes, with the same dimensions that may vary."""
    found: dict[str, Captured] = {}
    if BATCH not in dimensions.names and batch_of(example) == 1:
        warnings.warn(
            f"{type(model).__name__} takes a batch of 1 only; traced with that batch.", TraceWarning, stacklevel=3
        )
    for phase in PHASES:
        model.train(phase == "train")
        with untouched(model), functions.kept(phase):
            found[phase] = capture(model, example, phase, dimensions)
        dimensions = found[phase].dimensions
    if found["train"].dimensions != dimensions:
        model.train()
        with untouched(model), functions.kept("train"):
            found["train"] = capture(model, example, "train", dimensions)
    return found


def _assemble(
    model: nn.Module,
    captured: Mapping[str, Captured],
    example: Example,
    *,
    name: str,
    chosen: Mapping[str, int | str],
    classes: int | None,
    task: type[Task] | None,
) -> Program:
    state = skeleton(model)
    dimensions = captured["eval"].dimensions
    graphs = {phase: flatten(captured[phase].exported, state, phase, dimensions.places) for phase in PHASES}
    structures = {phase: captured[phase].exported.call_spec for phase in PHASES}
    out_specs = {phase: _given(structures[phase].out_spec) for phase in PHASES}
    for phase, flat in graphs.items():
        names = output_names(flat.returned, out_specs[phase], phase, chosen=chosen, classes=classes, task=task)
        flat.graph.output(flat.returned).meta = {"names": names}
    placeholders = [node for node in graphs["train"].graph.nodes if node.op == "placeholder"]
    inputs = tuple(replace(node.meta["spec"], name=str(node.target)) for node in placeholders)
    return Program(
        state,
        {phase: flat.graph for phase, flat in graphs.items()},
        name=name,
        stage=Stage.TRACED,
        input_specs=inputs,
        dynamic_batch=BATCH in dimensions.names,
        in_spec=_given(structures["train"].in_spec),
        out_specs=out_specs,
        sizes=dimensions.sizes(example),
        ranges={phase: captured[phase].ranges for phase in PHASES},
        constants=graphs["train"].constants,
        signature=signature_of(model),
    )


def _trained_on(task: str | Task | None, meaning: type[Task] | None) -> str | None:
    """Return the output that a loss will read, as far as it is known; None: all."""
    if isinstance(task, Task):
        return task.trained_on
    return LOGITS if meaning is None else meaning.output


def _given(structure: pytree.TreeSpec | None) -> pytree.TreeSpec:
    assert structure is not None, "torch.export gives every program the structure of its inputs and outputs"
    return structure


# --- after it


def _say_limits(program: Program, captured: Mapping[str, Captured], causes: Causes) -> None:
    """Warn of sizes that a phase does not hold for, and why."""
    lines = captured["eval"].conditions
    where = f" ({'; '.join(lines)})" if lines else ""
    for name in program.sizes:
        found = {phase: program.ranges[phase].get(name, EVERY) for phase in PHASES}
        asked = captured["eval"].dimensions.limits.get(name, EVERY)
        for phase in PHASES:
            cause = causes[phase].get(name)
            at_fault = cause is not None and cause.at_fault
            if found[phase] in (EVERY, asked):
                continue
            if phase == "train" and captured["train"].ranges[name] == EVERY and not at_fault:
                continue  # a model that fails on one sample in training, as batch norms do, fails there itself
            if phase == "train" and found["train"] == found["eval"]:
                continue
            what, others = ("batches of ", "other batches") if name == BATCH else ("", "other sizes")
            guarded = cause is None or captured[phase].ranges[name] not in (EVERY, asked)
            why = [f"outside, forward takes another branch or fails{where}"] if guarded else []
            why += [] if cause is None else [cause.text]
            held = found[phase].text(name)
            _warn(
                f"{program.name!r} holds for {what}{held} in {phase} mode: {'; '.join(why)}. The program refuses {others}."
            )


def _say_rest(program: Program, reads: str | None) -> None:
    """Warn of outputs that a loss would not train, and of what an exported file would lose."""
    if reads is not None and (others := beside(program, "train", reads)):
        shown = ", ".join(f"{name!r} (output {output!r})" for name, output in list(others.items())[:4])
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        do, holds = ("do", "class scores") if reads == LOGITS else ("does", "predicted numbers")
        _warn(
            f"the {reads} {do} not depend on {shown}{more}: a loss of only the {reads} does not train these. If another output holds the "
            f"{holds}, say which with outputs={{{reads!r}: ...}}."
        )
    changed = changed_buffers(program, "eval")
    if changed:
        _warn(
            f"forward changes the buffers {', '.join(map(repr, changed))} in eval mode, too. The program does as well, an exported "
            f"file cannot: it keeps no state between calls."
        )
    draws = random_draws(program, "eval")
    if draws:
        _warn(
            f"forward draws random numbers in eval mode ({place_of(draws[0])}), so two calls differ, and an exported file cannot be "
            f"compared with the program."
        )


def _warn(text: str) -> None:
    warnings.warn(text, TraceWarning, stacklevel=4)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
