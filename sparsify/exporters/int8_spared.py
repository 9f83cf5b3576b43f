"""Which layers may compute in integers where all of them together may not: found by halving, in few tries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

TRIES = 12
"""Files made and judged at most; a network with one bad layer among fifty takes about as many."""


def bearable(layers: Sequence[str], good: Callable[[tuple[str, ...]], bool], *, tries: int = TRIES) -> tuple[str, ...]:
    """The layers that are good together, given that not all of them are; () where none were found within ``tries``.

    Args:
        layers: in the order of the network.
        good: whether a file with these layers in integers, and no others, may stand in for the program.
        tries: how often ``good`` may be asked.
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
