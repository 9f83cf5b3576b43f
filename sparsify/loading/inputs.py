"""Makes example inputs from text, so that a model can be inspected without its data."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsify.errors import LoadError

FORM = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")
MOST_VALUES = 1 << 28
"""Largest number of values of an example input, 1 GiB as float32."""
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


def example_inputs(items: Sequence[str]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Make positional and keyword inputs of ``forward`` from texts such as ``2x3x32x32`` or ``input_ids=2x16:int64``.

    Floats are normal noise. Integers and booleans are 0 or 1, which are valid token ids, token types and attention masks.

    Raises:
        LoadError: If an item has another form, a size is 0, a name occurs twice, or an unnamed input follows a named one.
    """
    generator = torch.Generator().manual_seed(0)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for item in items:
        match = FORM.fullmatch(item.strip())
        dtype = DTYPES.get((match["dtype"] or "float32") if match else "")
        shape = [int(size[:12]) for size in match["shape"].split("x")] if match else []
        if match is None or dtype is None or 0 in shape:
            raise LoadError(
                f"--input {item!r} should be SHAPE, NAME=SHAPE or NAME=SHAPE:TYPE, e.g. 2x3x32x32 or input_ids=2x16:int64, with sizes "
                f"from 1, the batch first; types are {', '.join(DTYPES)}."
            )
        if math.prod(shape) > MOST_VALUES:
            raise LoadError(f"--input {item[:80]!r} has more than {MOST_VALUES:,} values. Give a smaller example.")
        whole = torch.randint(2, shape, generator=generator).to(dtype)
        value = torch.randn(shape, generator=generator, dtype=dtype) if dtype.is_floating_point else whole
        name = match["name"]
        if name is None and kwargs:
            raise LoadError(f"--input {item!r} has no name, but comes after a named one. Put unnamed inputs first.")
        if name in kwargs:
            raise LoadError(f"--input names {name!r} twice. Give each input once.")
        if name is None:
            args.append(value)
        else:
            kwargs[name] = value
    return tuple(args), kwargs
