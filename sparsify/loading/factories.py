"""``file.py:name`` and ``package.module:name``: the user's own code, called without arguments."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from sparsify.errors import LoadError


def call_factory(text: str, *, gives: str) -> object:
    """What ``file.py:factory`` or ``package.module:factory`` returns. A file may import what lies beside it.

    Args:
        text: which factory.
        gives: what it should return, for messages.

    Raises:
        LoadError: If the file, module or factory is missing, or fails.
    """
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name:
        raise LoadError(f"the {gives} {text!r} should be written file.py:factory or package.module:factory.")
    try:
        with _importable(Path(where).resolve().parent if where.endswith(".py") else Path.cwd()):
            return _find(where, name)()
    except LoadError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(
            f"the factory {text!r} failed: {type(error).__name__}: {error}. It is called without arguments."
        ) from error


def _find(where: str, name: str) -> Callable[[], object]:
    try:
        if where.endswith(".py"):
            path = Path(where)
            if not path.is_file():
                raise LoadError(f"there is no file {where}. Check the path.")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            known = sys.modules.setdefault(path.stem, module)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                if known is module:
                    del sys.modules[path.stem]
                raise
        else:
            module = importlib.import_module(where)
    except LoadError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(f"importing {where} failed: {type(error).__name__}: {error}.") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        names = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise LoadError(f"{where} has no callable {name!r}; it has {', '.join(names) or 'none'}.")
    return factory


@contextmanager
def _importable(folder: Path) -> Generator[None]:
    """Let modules in ``folder`` be imported, after those that are installed."""
    before = list(sys.path)
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
