"""A program as an ordinary module."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from sparsify.ir.program import Program


class StandaloneModule(nn.Module):
    """A traced model as an ordinary module: no passes, no program methods, the user's parameter names."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[table] = program.__dict__[table]
        self.__dict__["_program"] = program
        self.training = "train" in program.phases

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        program: Program = self.__dict__["_program"]
        program.__dict__["training"] = self.training
        return program.forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> StandaloneModule:
        copy = StandaloneModule(deepcopy(self.__dict__["_program"], memo))
        copy.train(self.training)
        return copy
