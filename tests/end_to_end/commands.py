"""The `sparsify` command in this process, where the process is not what is tested."""

from __future__ import annotations

import contextlib
import io
import sys

import sparsify.cli as cli


def command(*arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["sparsify", *map(str, arguments)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()
