"""Names from files of unknown origin that are safe in generated Python.

torch.fx writes the names of nodes, arguments and state into the Python source of a graph without escaping them, so a name from a file must
be a valid name.
"""

from __future__ import annotations

import keyword
import re

from sparsify.untrusted import parse_json

LONGEST_TEXT = 1000
TAKEN = frozenset({"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"})
"""Names that have another meaning in the generated source of a graph."""


def checked_keyword(text: str) -> str:
    """Return ``text`` if it can be the name of an operator's argument.

    Raises:
        ValueError: If it cannot.
    """
    if not text.isidentifier() or keyword.iskeyword(text) or len(text) > LONGEST_TEXT:
        raise ValueError(f"{text[:80]!r} is not a name")
    return text


def checked_identifier(text: str) -> str:
    """Return ``text`` if it can be the name of a node or an input.

    Raises:
        ValueError: If it cannot.
    """
    if checked_keyword(text) in TAKEN or text.startswith("__"):
        raise ValueError(f"{text[:80]!r} is a name that the graph needs for itself")
    return text


def checked_path(text: str) -> str:
    """Return ``text`` if it can be the qualified name of a parameter, a buffer or a submodule.

    Raises:
        ValueError: If a part of it is empty, could end the quotes around it in generated source, or is a special name of Python.
    """
    for part in text.split("."):
        if not part or part.startswith("__") or not part.isprintable() or re.search(r"[\"'\\{}]", part):
            raise ValueError(f"{text[:80]!r} is not a qualified name")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"the name {text[:80]!r}... is longer than {LONGEST_TEXT} characters")
    return text


def checked_text(text: str) -> str:
    """Return ``text`` if it is safe to show and to use as a key.

    Raises:
        ValueError: If it is too long or holds control characters.
    """
    if len(text) > LONGEST_TEXT or not text.isprintable():
        raise ValueError(
            f"the text {text[:80]!r} is longer than {LONGEST_TEXT} characters, or holds control characters"
        )
    return text


def is_plain_structure(text: str, keys: re.Pattern[str]) -> bool:
    """Return whether a text describes nested inputs or outputs with plain keys only.

    Other contexts are unsafe: torch's reader imports the module that a context names for an enum or a default factory.

    Args:
        text: in the format of `torch.utils._pytree.treespec_dumps`.
        keys: pattern that names of types, and keys that are strings, must match.
    """
    try:
        version, tree = parse_json(text)
        nodes = [tree]
        while nodes:
            node = nodes.pop()
            context = node["context"]
            found = parse_json(context) if isinstance(context, str) else context
            found = found if isinstance(found, list) else [found]
            if not all(k is None or isinstance(k, int) or (isinstance(k, str) and keys.fullmatch(k)) for k in found):
                return False
            if not (node["type"] is None or keys.fullmatch(node["type"])):
                return False
            nodes.extend(node["children_spec"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return version == 1
