"""`Program`: the train and eval phases of a model, two flat torch.fx graphs over one set of parameters."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsify.arguments import checked, found
from sparsify.errors import LoadError, TraceError, TrainingError
from sparsify.ir.binding import Inputs, arguments_of, leaves_of, plain_inputs, plain_signature
from sparsify.ir.inputs import Constant, checked_tensors, tensors_of, varying_places
from sparsify.ir.nodes import (
    HOOKS,
    PHASES,
    BatchNormSite,
    Costs,
    GradientTap,
    MaskSite,
    RandomMaskSite,
    Stage,
    TensorSpec,
    WeightSite,
)
from sparsify.ir.phase import Phase
from sparsify.ir.size_ranges import EVERY, SizeRange
from sparsify.ir.state import submodule, tensor_of
from sparsify.tasks import Task


class Program(nn.Module):
    """A traced model. Calling it runs the phase of its mode and returns what the user's model would.

    The parameters and buffers carry the user's own qualified names and are the very objects of the traced model; masks are
    bool buffers ``<weight>_mask``. Each phase is a `torch.fx.GraphModule` with flat inputs and flat outputs that shares the
    program's state. Make one with `sparsify.trace`; change one with passes.

    Attributes:
        name: name of the model.
        stage: how far passes have taken the program.
        phases: ``{"train": GraphModule, "eval": GraphModule}``; ``eval`` only once the program is deployed.
        input_specs: name, shape and dtype of every flat input.
        dynamic_batch: whether the first dimension of the inputs may vary.
        sizes: sizes of the traced example, by name of each varying dimension; ``N`` is the batch.
        ranges: the sizes that each phase holds for, by phase and dimension; a call with other sizes is refused.
        signature: parameters of the model's ``forward``; a call binds its arguments through it.
        constants: arguments that are not tensors, by their place among all arguments; a call must give the same values.
        places: input, dimension and name of every size that may vary.
        plain_inputs: the number of positional arguments of a call if each is a single value and there are no others; else -1.
        unfinished: what a trainer still has to do before the program is as sparse as requested; empty without a trainer.
        task: what the outputs mean, if the program was traced for a task. Functions of your own are not stored in its file.

    Examples:
        >>> import torch
        >>> import sparsify as sp
        >>> program = sp.trace(torch.nn.Linear(4, 3), torch.rand(2, 4), name="layer")
        >>> program.stage.value, program.input_specs[0].name, [site.name for site in program.maskable()]
        ('traced', 'input', ['weight'])
    """

    name: str
    stage: Stage
    phases: dict[str, Phase]
    input_specs: tuple[TensorSpec, ...]
    dynamic_batch: bool
    sizes: dict[str, int]
    ranges: dict[str, dict[str, SizeRange]]
    signature: inspect.Signature
    constants: dict[int, Constant]
    unfinished: str
    deep_copied: bool
    task: Task | None = None
    in_spec: pytree.TreeSpec
    plain_inputs: int
    places: tuple[tuple[int, int, str], ...]
    out_specs: dict[str, pytree.TreeSpec]

    @checked(TraceError)
    def __init__(
        self,
        state: nn.Module,
        graphs: Mapping[str, fx.Graph],
        *,
        name: str,
        stage: Stage,
        input_specs: tuple[TensorSpec, ...],
        dynamic_batch: bool,
        in_spec: pytree.TreeSpec,
        out_specs: Mapping[str, pytree.TreeSpec],
        sizes: Mapping[str, int] | None = None,
        ranges: Mapping[str, Mapping[str, SizeRange]] | None = None,
        constants: Mapping[int, Constant] | None = None,
        signature: inspect.Signature | None = None,
    ) -> None:
        super().__init__()
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[table] = state.__dict__[table]
        phases = {phase: Phase(state, graphs[phase], f"{name}_{phase}") for phase in PHASES if phase in graphs}
        # Plain attributes: phases own no state, so they must not be registered as submodules of the program.
        self.__dict__.update(
            name=name,
            stage=stage,
            phases=phases,
            input_specs=input_specs,
            dynamic_batch=dynamic_batch,
            in_spec=in_spec,
            plain_inputs=plain_inputs(in_spec),
            out_specs=dict(out_specs),
            sizes=dict(sizes or {}),
            ranges={phase: dict((ranges or {}).get(phase, {})) for phase in phases},
            places=varying_places(input_specs),
            constants=dict(constants or {}),
            signature=signature or plain_signature([spec.name for spec in input_specs], in_spec),
            unfinished="",
            deep_copied=False,
            training="train" in phases,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (Tensor, nn.Module)):
            super().__setattr__(name, value)
        else:  # a user's module may be called like an attribute of the program
            object.__setattr__(self, name, value)

    @property
    def batch_ranges(self) -> dict[str, SizeRange]:
        """The batch sizes each phase holds for."""
        return {phase: self.ranges[phase].get("N", EVERY) for phase in self.phases}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        phase = "train" if self.training else "eval"
        leaves = self.run_phase(phase, *args, **kwargs)
        spec = self.out_specs[phase]
        return pytree.tree_unflatten(leaves[: spec.num_leaves], spec)

    def call(self, inputs: Inputs) -> Any:
        """Call the program with a tensor, a tuple of arguments, or a mapping of arguments by name.

        Raises:
            TraceError: If the arguments do not have the names, structure, constants, shapes or sizes of the trace.
        """
        args, kwargs = arguments_of(inputs)
        return self(*args, **kwargs)

    def input_tensors(self, inputs: Inputs) -> list[Tensor]:
        """Return the tensors that `call` would pass to the graphs, one per entry of ``input_specs``.

        Raises:
            TraceError: If the arguments do not have the names, structure, constants or shapes of the trace.
        """
        args, kwargs = arguments_of(inputs)
        return checked_tensors(self, leaves_of(self, args, kwargs))

    def run_phase(self, phase: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Run one phase and return its flat outputs; outputs of heads come after the user's own.

        Raises:
            TraceError: If the arguments do not have the names, structure, constants, shapes or sizes of the trace.
        """
        self._check_phase(phase)
        if len(args) == self.plain_inputs and not kwargs and all([isinstance(value, Tensor) for value in args]):
            return list(self.phases[phase].forward(*tensors_of(self, phase, args)))
        return list(self.phases[phase].forward(*tensors_of(self, phase, leaves_of(self, args, kwargs))))

    def outputs(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the eval phase and return its outputs by name, including those of calibration and OOD heads.

        Returns:
            The output that the task reads (``logits``, or ``prediction``); further outputs of the user's own model, called
            ``output_1``, ``output_2``, ... or by their key; then the outputs of attached heads, such as ``probabilities``.
        """
        return dict(zip(self.output_names("eval"), self.run_phase("eval", *args, **kwargs), strict=True))

    def output_names(self, phase: str) -> tuple[str, ...]:
        """Return names of the flat outputs of a phase, in order."""
        return tuple(self.output_node(phase).meta["names"])

    def output_node(self, phase: str) -> fx.Node:
        """Return the node that returns the outputs of a phase.

        Raises:
            TraceError: If there is no such phase.
        """
        self._check_phase(phase)
        return next(iter(reversed(self.phases[phase].graph.nodes)))

    def _check_phase(self, phase: object) -> None:
        if not isinstance(phase, str) or phase not in self.phases:
            known = f"{self.name!r}, which is {self.stage.value}, has the phases {' and '.join(self.phases)}"
            raise TraceError(f"{known}, found {found(phase)}.")

    def reading(self, name: str | None, phase: str, leaves: Sequence[Any]) -> Any:
        """Select from the flat outputs of a phase what a task reads.

        Args:
            name: name of the output; None: all outputs of the model, in the structure in which it returns them.
            phase: ``train`` or ``eval``.
            leaves: what `run_phase` returned.

        Raises:
            TraceError: If no output has that name.
        """
        from sparsify.ir.reading import reading

        return reading(self, name, phase, leaves)

    def logits(self, output: Any) -> Tensor:
        """Select the logits [N, K] from what calling the program returned (a tensor, dict, tuple or model output).

        Raises:
            TraceError: If it is something else.
        """
        from sparsify.ir.reading import logits

        return logits(self, output)

    def weight(self, name: str) -> Tensor:
        """Return the parameter called ``name``; a copy of it with zeros, if it is stored compact."""
        from sparsify.ir.compaction import dense_weight

        return dense_weight(self, name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return parameters and persistent buffers by name, as every module does; weights that are stored compact are dense in it."""
        from sparsify.ir.compaction import made_dense

        return made_dense(self, super().state_dict(*args, **kwargs), kwargs.get("prefix", ""))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` returned, as every module does. Weights that are stored compact follow the masks that are loaded."""
        from sparsify.ir.compaction import make_room

        return super().load_state_dict(make_room(self, state_dict), strict, assign)

    def tensor(self, name: str) -> Tensor:
        """Return the parameter or buffer called ``name``, even where a method of this class has the same name.

        Raises:
            AttributeError: If there is none.
        """
        return tensor_of(self, name)

    def get_parameter(self, target: str) -> nn.Parameter:
        """Return the parameter called ``target``, as `tensor` does."""
        return cast(nn.Parameter, self.tensor(target))

    def get_buffer(self, target: str) -> Tensor:
        """Return the buffer called ``target``, as `tensor` does."""
        return self.tensor(target)

    def get_submodule(self, target: str) -> nn.Module:
        """Return the submodule called ``target``; the program itself for an empty name."""
        return submodule(self, target)

    def mask(self, weight: str) -> Tensor:
        """Return the mask of a weight: bool, of the weight's shape; True = active. An AttributeError names the weights with a mask."""
        from sparsify.ir.sites import mask_of

        return mask_of(self, weight)

    def masks(self) -> dict[str, Tensor]:
        """Masks by weight name, in graph order."""
        from sparsify.ir.sites import mask_names

        return {weight: self.get_buffer(mask) for weight, mask in mask_names(self).items()}

    def taps(self) -> dict[str, GradientTap]:
        """Gradient taps by weight name (after `insert-gradient-taps`)."""
        return {name.removesuffix("_tap"): tap for name, tap in self.named_modules() if isinstance(tap, GradientTap)}

    def hooks(self) -> dict[str, nn.Module]:
        """Taps and other modules that passes put into the graphs, by qualified name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, HOOKS)}

    def maskable(self) -> tuple[WeightSite, ...]:
        """Return weights that take part in a matrix product, in graph order; ``skip`` says which stay dense by default."""
        from sparsify.ir.sites import weight_sites

        return weight_sites(self)

    def mask_sites(self) -> tuple[MaskSite, ...]:
        """Return weights that have a mask, in graph order."""
        from sparsify.ir.sites import mask_sites

        return mask_sites(self)

    def random_mask_sites(self) -> tuple[RandomMaskSite, ...]:
        """Return weights that training reads through a random mask (after `insert-random-masks`), in graph order."""
        from sparsify.ir.sites import random_mask_sites

        return random_mask_sites(self)

    def batch_norm_sites(self) -> tuple[BatchNormSite, ...]:
        """Running statistics that training updates, in graph order."""
        from sparsify.ir.sites import batch_norm_sites

        return batch_norm_sites(self)

    def costs(self) -> Costs:
        """Parameter and MAC counts, dense and active."""
        from sparsify.ir.sites import costs

        return costs(self)

    def train(self, mode: bool = True) -> Program:
        """Switch the phase, as for any module. Switching to eval also sets inactive weights under lowered masks back to 0, in case
        something else wrote to them, such as an average of weights made by the user, or a loaded checkpoint.

        Raises:
            TrainingError: If the program is deployed and ``mode`` is True.
        """
        if mode and "train" not in self.phases:
            raise TrainingError(f"{self.name!r} is deployed: train the program that the pass deploy was given.")
        if not mode and self.stage is Stage.MASKED:
            from sparsify.ir.sites import clear_stray

            clear_stray(self)
        return super().train(mode)

    def clone(self) -> Program:
        """Make an independent copy with new parameters, buffers and graphs. Tied weights stay tied; compact weights become dense."""
        return self.copied({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        """Clone for `copy.deepcopy`; a run stores no weight compact from then on, because an average may follow the parameters."""
        self.deep_copied = True
        return self.copied(memo)

    def copied(self, memo: dict[int, Any]) -> Program:
        """Clone, and record tensors and hooks in ``memo``: an optimizer copied in the same call then holds the clone's parameters."""
        from sparsify.ir.copying import copied

        return copied(self, memo)

    def module(self) -> nn.Module:
        """Make an ordinary `nn.Module` from a copy of the state, with the user's parameter names and call signature."""
        from sparsify.ir.standalone import StandaloneModule

        return StandaloneModule(self.clone())

    def adopt(self, other: Program) -> None:
        """Become ``other`` in place, keeping this object's identity. ``other`` must not be used afterwards."""
        self.__dict__.update(other.__dict__)

    def text(self) -> str:
        """Return the whole program as deterministic text, with shapes and active counts."""
        from sparsify.ir.printer import program_text

        return program_text(self)

    __str__ = text

    def verify(self) -> None:
        """Check every rule of the program's stage.

        Raises:
            VerificationError: Listing all violations, with the program's text as a note.
        """
        from sparsify.ir.verifier import verify

        verify(self)

    @checked(LoadError)
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program to one file (JSON graph and safetensors in a zip; no pickle), atomically."""
        from sparsify.ir.serialization import save_program

        save_program(self, Path(path))

    @classmethod
    @checked(LoadError)
    def load(cls, path: str | os.PathLike[str]) -> Program:
        """Read and verify a program written by `save`. Executes no code from the file.

        Raises:
            LoadError: If the file is missing, truncated, not a program, or fails verification.
        """
        from sparsify.ir.serialization import load_program

        return load_program(Path(path), cls)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise LoadError(
            "programs are not pickled: pickles can execute code. Use program.save(path) and Program.load(path)."
        )
