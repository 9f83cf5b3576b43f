"""Things of one kind by name, those of installed plug-ins among them.

A package adds its own through the entry-point group ``sparsify.plugins``: each entry names a module, or a function without arguments,
that registers what the package brings (``sparsify.methods.METHODS.register(...)``, ``sparsify.passes.register``, and so on). Plug-ins are
loaded once, when a name is first looked up.
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
    """A mapping from names to things of one kind, in the order in which they were added.

    Args:
        kind: what the things are, for messages: ``"method"``.
        error: what to raise for a name that is unknown or taken.
        own: those of this package.
    """

    def __init__(self, kind: str, error: type[SparsifyError], own: Mapping[str, T] | None = None) -> None:
        self.kind, self._error = kind, error
        self._entries: dict[str, T] = dict(own or {})
        self._origins: dict[str, str] = {}

    def register(self, name: str, value: T) -> T:
        """Add a thing under a name. Adding the same thing, or an equal one, again changes nothing.

        Raises:
            SparsifyError: Of the registry's kind, if the name is no text, or another thing has it.
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
        """`register` as a decorator: ``@METHODS.registering("mest")``."""
        return lambda value: self.register(name, value)

    def origin(self, name: str) -> str:
        """The distribution whose plug-in added a name; "" for this package's own and for what a program registered itself."""
        return self._origins.get(name, "")

    def find(self, name: str, *, also: Sequence[str] = ()) -> T:
        """The thing of that name.

        Args:
            name: of one of these things.
            also: further names that the caller accepts, for the message.

        Raises:
            SparsifyError: Of the registry's kind, if there is none; naming the nearest, and plug-ins that could not be loaded.
        """
        if name in self:
            return self[name]
        known = [*also, *self]
        near = difflib.get_close_matches(name, known, n=3)
        nearest = f" Nearest: {', '.join(near)}." if near else ""
        raise self._error(f"there is no {self.kind} {name!r}.{nearest} All: {', '.join(known)}.{not_loaded()}")

    @contextmanager
    def forgetting(self) -> Generator[None]:
        """Forget after the block what is registered within it; for tests."""
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
    """Load the installed plug-ins, the first time it is called; the names of the entry points that were loaded.

    One that fails is warned of and left out: it should not take the others, or the command, with it.
    """
    if _loading or _loaded:
        return tuple(_loaded[1:])
    _loaded.append("")  # looked for, whatever is found
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
    """A sentence on the plug-ins that could not be loaded, which may have brought a name that is missing; "" without any."""
    return f" Not loaded: plug-in {', '.join(f'{name} ({why})' for name, why in _failed.items())}." if _failed else ""


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value.partition(":")[0]
