"""Registries: methods, passes, tasks and others by name, including those of installed plug-ins.

A package adds entries through the entry-point group ``sparsify.plugins``. Each entry point names a module, or a function without
arguments, that registers what the package offers (``sparsify.methods.METHODS.register(...)``, ``sparsify.passes.register``, and so on).
Plug-ins are loaded once, when a name is first looked up.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from sparsify.errors import PluginWarning, SparsifyError

__all__ = ["Registry", "load_plugins", "not_loaded"]

GROUP = "sparsify.plugins"
T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A mapping from names to entries of one kind, in the order in which they were added.

    Args:
        kind: what an entry is, for messages, such as ``"method"``.
        error: class of the error for a name that is unknown or taken.
        own: the entries of this package.
    """

    def __init__(self, kind: str, error: type[SparsifyError], own: Mapping[str, T] | None = None) -> None:
        self.kind, self._error = kind, error
        self._entries: dict[str, T] = dict(own or {})
        self._origins: dict[str, str] = {}

    def register(self, name: str, value: T) -> T:
        """Add an entry under a name, and return it. Adding an equal entry again changes nothing.

        Raises:
            SparsifyError: Of the registry's class, if the name is not a non-empty string, or another entry has it.
        """
        if not isinstance(name, str) or not name:
            raise self._error(f"the name of a {self.kind} should be text, found {name!r}.")
        if self._entries.setdefault(name, value) != value:
            owner = self._origins.get(name, "sparsify")
            raise self._error(f"the {self.kind} name {name!r} is taken by one of {owner}. Choose another name.")
        if _loading:
            self._origins.setdefault(name, _loading[-1])
        return value

    def registering(self, name: str) -> Callable[[T], T]:
        """Return `register` as a decorator: ``@METHODS.registering("mest")``."""
        return lambda value: self.register(name, value)

    def origin(self, name: str) -> str:
        """Return the distribution whose plug-in added a name; empty for entries of this package and those that a program registered."""
        return self._origins.get(name, "")

    def find(self, name: str, *, also: Sequence[str] = ()) -> T:
        """Return the entry of a name.

        Args:
            name: name of an entry.
            also: further names that the caller accepts, for the message.

        Raises:
            SparsifyError: Of the registry's class, if there is no such entry; names the nearest, and plug-ins that could not be loaded.
        """
        if name in self:
            return self[name]
        known = [*also, *self]
        near = difflib.get_close_matches(name, known, n=3)
        nearest = f" Nearest: {', '.join(near)}." if near else ""
        raise self._error(f"there is no {self.kind} {name!r}.{nearest} All: {', '.join(known)}.{not_loaded()}")

    @contextmanager
    def forgetting(self) -> Generator[None]:
        """After the block, remove the entries that it registered; for tests."""
        load_plugins()
        entries, origins = dict(self._entries), dict(self._origins)
        try:
            yield
        finally:
            self._entries, self._origins = entries, origins

    def __getitem__(self, name: str) -> T:
        load_plugins()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)


_loading: list[str] = []
_failed: dict[str, str] = {}
_loaded: list[str] = []


def load_plugins() -> tuple[str, ...]:
    """Load the installed plug-ins on the first call; returns the names of the entry points that were loaded.

    A plug-in that fails is left out with a warning, so that the others and the command still work.
    """
    if _loading or _loaded:
        return tuple(_loaded[1:])
    _loaded.append("")  # marks that plug-ins were searched, even if there are none
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        _loading.append(_distribution(entry))
        try:
            found = entry.load()
            if callable(found):
                found()
            _loaded.append(entry.name)
        except Exception as error:
            _failed[entry.name] = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the plug-in {entry.name!r} of {_distribution(entry)} ({entry.value}) could not be loaded and is left out: "
                f"{type(error).__name__}: {error}. Mend or uninstall that package.",
                PluginWarning,
                stacklevel=3,
            )
        finally:
            _loading.pop()
    return tuple(_loaded[1:])


def not_loaded() -> str:
    """Return a sentence that names the plug-ins that could not be loaded and may define a missing name; empty if there are none."""
    return f" Not loaded: plug-in {', '.join(f'{name} ({why})' for name, why in _failed.items())}." if _failed else ""


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value.partition(":")[0]
