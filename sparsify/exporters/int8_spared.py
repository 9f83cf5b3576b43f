"""Finds layers that can be quantized together when quantizing all of them costs too much accuracy, by bisection in few tries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

TRIES = 12
"""Largest number of models that are made and checked; finding one bad layer in a network of fifty takes about as many."""


def agreeing_layers(
    layers: Sequence[str], good: Callable[[tuple[str, ...]], bool], *, tries: int = TRIES
) -> tuple[str, ...]:
    """Return layers that can be quantized together, given that quantizing all of them fails; () if none are found within ``tries``.

    Args:
        layers: layers in the order of the network.
        good: returns whether a model in which exactly these layers are quantized agrees with the program.
        tries: largest number of calls of ``good``.
    """
    known: dict[tuple[str, ...], bool] = {tuple(layers): False}

    def holds(part: tuple[str, ...]) -> bool:
        if part not in known:
            known[part] = len(known) <= tries and good(part)
        return known[part]

    def parts(whole: tuple[str, ...]) -> list[tuple[str, ...]]:
        if holds(whole):
            return [whole]
        if len(whole) < 2:
            return []
        middle = len(whole) // 2
        return [*parts(whole[:middle]), *parts(whole[middle:])]

    kept = sorted(parts(tuple(layers)), key=len, reverse=True)
    while kept:
        together = tuple(name for name in layers if any(name in part for part in kept))
        if holds(together):
            return together
        kept.pop()
    return ()
