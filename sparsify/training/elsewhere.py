"""Gives a program other parameter values for a while. Values have the shapes of the dense weights, however the program stores these."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor

from sparsify.ir import Program
from sparsify.ir.compaction import put_compact
from sparsify.ir.nodes import vouched
from sparsify.ir.sites import layouts as layouts_of
from sparsify.parts.layouts import Layout


def scattered(layouts: Mapping[str, Layout], name: str, value: Tensor) -> Tensor:
    """Return the dense form of a value with the shape of a stored weight; the value itself if the weight is stored dense."""
    layout = layouts.get(name)
    return value if layout is None else layout.scatter(value)


def gathered(layouts: Mapping[str, Layout], name: str, value: Tensor) -> Tensor:
    """Return a dense value in the form in which its weight is stored."""
    layout = layouts.get(name)
    return value if layout is None else layout.gather(value)


class Computed(Mapping[str, Tensor]):
    """Tensors by name, each computed whenever it is read.

    Args:
        makers: by name, a function that computes the tensor.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class Elsewhere:
    """Gives a program other parameter values for a while.

    A compact weight has a layout for its own mask only. While it has other values, its layout covers those as well, so that the program
    computes what dense weights would.

    Args:
        program: the program.
        layouts: the layouts of its compact weights, a mapping that follows them; None: those that it has now.
    """

    def __init__(self, program: Program, layouts: Mapping[str, Layout] | None = None) -> None:
        self._program, self._layouts = program, layouts_of(program) if layouts is None else layouts
        self._covers: dict[str, tuple[Tensor, int, Layout, Layout]] = {}

    @contextmanager
    def values(self, at: Mapping[str, Tensor]) -> Generator[Mapping[str, Layout]]:
        """Within the block, use the values ``at``, by name; lowered masks read them without masking.

        Yields:
            The layouts that compact weights have within the block.
        """
        program, found = self._program, dict(self._layouts)
        parameters, masks = dict(program.named_parameters()), program.masks()
        kept = {name: (parameters[name].data, parameters[name].grad) for name in at}
        try:
            for name, value in at.items():
                if name in found:
                    found[name] = self._cover(name, value)
                    put_compact(program, name, found[name], found[name].gather(value))
                else:
                    parameters[name].data = value
            with ExitStack() as stack:
                for name in at.keys() & masks.keys() - found.keys():
                    stack.enter_context(vouched(parameters[name], masks[name]))
                yield found
        finally:
            for name, (value, gradient) in kept.items():
                if name in found:
                    put_compact(program, name, self._layouts[name], value)
                    parameters[name].grad = gradient
                else:
                    parameters[name].data = value

    def is_own(self, name: str, layout: Layout) -> bool:
        """Return whether a layout is the one for the mask of a compact weight."""
        return self._layouts.get(name) is layout

    def _cover(self, name: str, value: Tensor) -> Layout:
        """Return a layout for ``value``; it is found once as long as value and mask stay the same."""
        layout, known = self._layouts[name], self._covers.get(name)
        if known is not None and known[0] is value and known[1] == value._version and known[2] is layout:
            return known[3]
        cover = layout.covering(value)
        self._covers[name] = value, value._version, layout, cover
        return cover
