"""The heads of a recipe: how they are written, and those besides the one that calibrates, ``export.heads``."""

from __future__ import annotations

from collections.abc import Sequence

from sparsify.errors import RecipeError
from sparsify.heads import HEADS, Head, named
from sparsify.heads.registry import AUTO

CHOSEN, STAND_IN = "ood-auto", "energy"
"""In place of a head: the score of out-of-distribution inputs that is best on validation samples; what stands for it before training."""


def spelt_head(text: str | None, kinds: Sequence[str]) -> str | None:
    """Return a head as a program records it, with all its values: ``masked-temperature:0.3:20``; None if it is none of ``kinds``.

    Raises:
        RecipeError: If its values are wrong.
    """
    return named(text).spec if text is not None and text.partition(":")[0] in kinds else None


def further_heads(texts: Sequence[str]) -> tuple[Head, ...]:
    """Return the heads that a recipe names.

    Raises:
        RecipeError: If one is unknown, its values are wrong, or two of them make the same output.
    """
    found, makers = tuple(_named(text, CHOSEN) or named(STAND_IN) for text in texts), dict[str, str]()
    for text, head in zip(texts, found, strict=True):
        for name in head.outputs:
            if name in makers:
                raise RecipeError(f"export.heads: {makers[name]} and {text} both make {name!r}. Name one of them.")
            makers[name] = text
    return found


def check_calibrator(text: str) -> None:
    """Refuse a text that names no head: ``export.calibrator``.

    Raises:
        RecipeError: If there is no such head, or its values are wrong.
    """
    if text.partition(":")[0] == CHOSEN:
        raise RecipeError(f"{text!r} chooses a score and does not calibrate. Name {CHOSEN!r} in export.heads (--head).")
    _named(text, AUTO)


def _named(text: str, word: str) -> Head | None:
    """Return the head that a text names; None for ``word``, which stands in place of one.

    Raises:
        RecipeError: If there is no such head, or its values are wrong.
    """
    name, colon, _ = text.partition(":")
    if name == word and colon:
        raise RecipeError(f"{word!r} takes no values, found {text!r}. Leave out what follows it.")
    if name == word:
        return None
    HEADS.find(name, also=(word,))
    return named(text)


def check_further_heads(texts: Sequence[str], task: str, kinds: Sequence[str]) -> None:
    """Refuse heads that a task cannot have besides the one that calibrates.

    Args:
        texts: as in the recipe.
        task: its name.
        kinds: names of the heads that fit it.

    Raises:
        RecipeError: If there is one.
    """
    for text, head in zip(texts, further_heads(texts), strict=True):
        if head.calibrates:
            raise RecipeError(
                f"export.heads: {text!r} calibrates what the task reads. Name it in export.calibrator, of which there is one."
            )
        if head.name not in kinds:
            raise RecipeError(
                f"export.heads: {text!r} does not fit task {task!r}. Name heads that `sparsify heads` lists for it."
            )
