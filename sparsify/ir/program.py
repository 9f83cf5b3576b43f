"""`Program`: the train and eval phases of a model, two flat torch.fx graphs over one set of parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsify.errors import LoadError, TraceError
from sparsify.ir.nodes import (
    HOOKS,
    BatchNormSite,
    Costs,
    GradientTap,
    MaskSite,
    RandomMaskSite,
    Stage,
    TensorSpec,
    WeightSite,
)

PHASES = ("train", "eval")
_NOTHING = nn.Module()


class Program(nn.Module):
    """A traced model. Calling it runs the phase of its mode and returns what the user's model would.

    The parameters and buffers carry the user's own qualified names and are the very objects of the traced model; masks are
    bool buffers ``<weight>_mask``. Each phase is a `torch.fx.GraphModule` with flat inputs and flat outputs that shares the
    program's state. Make one with `sparsify.trace`; change one with passes.

    Attributes:
        name: of the model.
        stage: how far it has come.
        phases: ``{"train": GraphModule, "eval": GraphModule}``.
        input_specs: name, shape and dtype of every flat input.
        dynamic_batch: whether the first dimension of the inputs may vary.
    """

    name: str
    stage: Stage
    phases: dict[str, fx.GraphModule]
    input_specs: tuple[TensorSpec, ...]
    dynamic_batch: bool
    in_spec: pytree.TreeSpec
    out_specs: dict[str, pytree.TreeSpec]

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
    ) -> None:
        super().__init__()
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[table] = state.__dict__[table]
        phases = {phase: self._phase(state, graphs[phase], f"{name}_{phase}") for phase in PHASES}
        # Plain attributes: the phases own no state, so they must not appear among the program's submodules.
        self.__dict__.update(
            name=name,
            stage=stage,
            phases=phases,
            input_specs=input_specs,
            dynamic_batch=dynamic_batch,
            in_spec=in_spec,
            out_specs=dict(out_specs),
        )

    def _phase(self, state: nn.Module, graph: fx.Graph, class_name: str) -> fx.GraphModule:
        module = fx.GraphModule(state, graph, class_name)
        for table in ("_parameters", "_buffers", "_modules"):
            module.__dict__[table] = self.__dict__[table]
        return module

    # --- running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        phase = "train" if self.training else "eval"
        leaves = self.run_phase(phase, *args, **kwargs)
        spec = self.out_specs[phase]
        return pytree.tree_unflatten(leaves[: spec.num_leaves], spec)

    def run_phase(self, phase: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Run one phase and return its flat outputs, those of heads after the user's own.

        Raises:
            TraceError: If the arguments do not have the structure or shapes the model was traced with.
        """
        flat, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.in_spec:
            raise TraceError(
                f"program {self.name!r} was traced with arguments of structure {self.in_spec}, found {spec}. "
                f"Call it as the model was called when it was traced."
            )
        for value, expected in zip(flat, self.input_specs, strict=True):
            _check_input(value, expected, self.name)
        return list(self.phases[phase](*flat))

    def outputs(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Named outputs of the eval phase, calibration and OOD heads included.

        Returns:
            ``logits`` [N, K], then ``probabilities`` [N, K] and others where a head was attached; further outputs of the
            user's own model are called ``output_1``, ``output_2``, ... or by their key.
        """
        return dict(zip(self.output_names("eval"), self.run_phase("eval", *args, **kwargs), strict=True))

    def output_names(self, phase: str) -> tuple[str, ...]:
        """Names of the flat outputs of a phase, in order."""
        return tuple(self.output_node(phase).meta["names"])

    def output_node(self, phase: str) -> fx.Node:
        return next(iter(reversed(self.phases[phase].graph.nodes)))

    def logits(self, output: Any) -> Tensor:
        """The logits [N, K] in what calling the program returned (a tensor, dict, tuple or model output)."""
        leaves = pytree.tree_leaves(output)
        return cast(Tensor, leaves[self.output_names("train").index("logits")])

    # --- state by name

    def weight(self, name: str) -> nn.Parameter:
        """The parameter called ``name``."""
        return self.get_parameter(name)

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer called ``name``.

        Looked up in the state tables, never as an attribute: a user's parameter may be called like a method of this class.

        Raises:
            AttributeError: If there is none.
        """
        owner: nn.Module = self
        *path, leaf = name.split(".")
        for part in path:
            owner = cast(nn.Module, owner._modules.get(part, _NOTHING))
        value = owner._parameters.get(leaf, owner._buffers.get(leaf))
        if value is None:
            raise AttributeError(f"program {self.name!r} has no parameter or buffer {name!r}")
        return value

    def get_parameter(self, target: str) -> nn.Parameter:
        """`tensor`, for a parameter."""
        return cast(nn.Parameter, self.tensor(target))

    def get_buffer(self, target: str) -> Tensor:
        """`tensor`, for a buffer."""
        return self.tensor(target)

    def mask(self, weight: str) -> Tensor:
        """The bool mask of a weight, of its shape; True = active."""
        return self.get_buffer(f"{weight}_mask")

    def masks(self) -> dict[str, Tensor]:
        """Masks by weight name, in graph order."""
        from sparsify.ir.sites import mask_names

        return {weight: self.get_buffer(mask) for weight, mask in mask_names(self).items()}

    def taps(self) -> dict[str, GradientTap]:
        """Gradient taps by weight name (after `insert-gradient-taps`)."""
        return {
            name.removesuffix("_tap"): module
            for name, module in self.named_modules()
            if isinstance(module, GradientTap)
        }

    def hooks(self) -> dict[str, nn.Module]:
        """Taps and other modules that passes put into the graphs, by qualified name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, HOOKS)}

    # --- derived tables; all computed from the graph

    def maskable(self) -> tuple[WeightSite, ...]:
        """Weights that take part in a matrix product, in graph order; ``skip`` says which stay dense by default."""
        from sparsify.ir.sites import weight_sites

        return weight_sites(self)

    def mask_sites(self) -> tuple[MaskSite, ...]:
        """Weights that have a mask, in graph order."""
        from sparsify.ir.sites import mask_sites

        return mask_sites(self)

    def random_mask_sites(self) -> tuple[RandomMaskSite, ...]:
        """Weights that training reads through a random mask (after `insert-random-masks`), in graph order."""
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

    # --- whole-program operations

    def clone(self) -> Program:
        """An independent copy: new parameters, buffers and graphs. Weights tied here are tied there."""
        return Program(
            clone_state(self),
            {phase: copy_graph(module.graph) for phase, module in self.phases.items()},
            name=self.name,
            stage=self.stage,
            input_specs=self.input_specs,
            dynamic_batch=self.dynamic_batch,
            in_spec=self.in_spec,
            out_specs=self.out_specs,
        ).train(self.training)

    def module(self) -> nn.Module:
        """An ordinary `nn.Module` over a copy of the state, with the user's parameter names and call signature."""
        return StandaloneModule(self.clone())

    def adopt(self, other: Program) -> None:
        """Become ``other`` in place, keeping this object's identity. ``other`` must not be used afterwards."""
        self.__dict__.update(other.__dict__)

    def text(self) -> str:
        """Deterministic text of the whole program, with shapes and active counts."""
        from sparsify.ir.printer import program_text

        return program_text(self)

    def __str__(self) -> str:
        return self.text()

    def verify(self) -> None:
        """Check every rule of the program's stage.

        Raises:
            VerificationError: Listing all violations, with the program's text as a note.
        """
        from sparsify.ir.verifier import verify

        verify(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program to one file (JSON graph and safetensors in a zip; no pickle), atomically."""
        from sparsify.ir.serialization import save_program

        save_program(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Program:
        """Read and verify a program written by `save`. Executes no code from the file.

        Raises:
            LoadError: If the file is missing, truncated, not a program, or fails verification.
        """
        from sparsify.ir.serialization import load_program

        return load_program(Path(path))

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise LoadError(
            "programs are not pickled: pickles can execute code. Use program.save(path) and Program.load(path)."
        )


class StandaloneModule(nn.Module):
    """A traced model as an ordinary module: no passes, no program methods, the user's parameter names."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[table] = program.__dict__[table]
        self.__dict__["_program"] = program

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        program: Program = self.__dict__["_program"]
        program.__dict__["training"] = self.training
        return program.forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> StandaloneModule:
        copy = StandaloneModule(self.__dict__["_program"].clone())
        copy.train(self.training)
        return copy


def skeleton(model: nn.Module) -> nn.Module:
    """A tree of bare modules that holds the very parameters and buffers of ``model`` under the same names."""
    root = nn.Module()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        place(root, name, parameter)
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                name = f"{prefix}.{leaf}" if prefix else leaf
                place(root, name, buffer, persistent=leaf not in module._non_persistent_buffers_set)
    return root


def place(root: nn.Module, name: str, value: Tensor | nn.Module, *, persistent: bool = True) -> None:
    """Register a parameter, buffer or submodule under a dotted name, making bare modules on the way."""
    owner = root
    *path, leaf = name.split(".")
    for part in path:
        if part not in owner._modules:
            owner._modules[part] = nn.Module()
        owner = cast(nn.Module, owner._modules[part])
    if isinstance(value, nn.Parameter):
        owner._parameters[leaf] = value
    elif isinstance(value, Tensor):
        owner._buffers[leaf] = value
        (owner._non_persistent_buffers_set.discard if persistent else owner._non_persistent_buffers_set.add)(leaf)
    else:
        owner._modules[leaf] = value


def clone_state(model: nn.Module) -> nn.Module:
    """`skeleton` of a deep copy: tied tensors stay tied, hooks are new."""
    copies: dict[int, Tensor] = {}

    def copied(value: Tensor) -> Tensor:
        if id(value) not in copies:
            fresh = value.detach().clone()
            copies[id(value)] = nn.Parameter(fresh, value.requires_grad) if isinstance(value, nn.Parameter) else fresh
        return copies[id(value)]

    source, root = skeleton(model), nn.Module()
    for prefix, module in source.named_modules(remove_duplicate=False):
        for leaf, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                name = f"{prefix}.{leaf}" if prefix else leaf
                place(root, name, copied(value), persistent=leaf not in module._non_persistent_buffers_set)
    for name, module in model.named_modules():
        if isinstance(module, HOOKS):
            place(root, name, type(module)())
    return root


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of a flat graph, metadata included."""
    fresh = fx.Graph()
    value_map: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copied = fresh.node_copy(node, lambda n: value_map[n])
        copied.meta = dict(node.meta)
        value_map[node] = copied
    return fresh


def _check_input(value: Any, expected: TensorSpec, program: str) -> None:
    if not isinstance(value, Tensor):
        return
    fits = len(value.shape) == len(expected.shape) and all(
        isinstance(want, str) or want == have for want, have in zip(expected.shape, value.shape, strict=False)
    )
    if not fits:
        raise TraceError(
            f"input {expected.name!r} of program {program!r} was traced with shape [{', '.join(map(str, expected.shape))}], found "
            f"{list(value.shape)}. Give inputs of that shape (N may vary), or trace again with an example of the new one."
        )
    if str(value.dtype).removeprefix("torch.") != expected.dtype and not torch.is_autocast_enabled(value.device.type):
        raise TraceError(
            f"input {expected.name!r} of program {program!r} was traced with dtype {expected.dtype}, found {value.dtype}. "
            f"Convert it with .to(torch.{expected.dtype})."
        )
