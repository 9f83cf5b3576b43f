"""Forks processes from a separate server, so that modules it imports do not appear in processes of the user's own forkserver."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from multiprocessing import forkserver, popen_forkserver, reduction, spawn, util
from multiprocessing.context import ForkServerContext, ForkServerProcess, set_spawning_popen
from typing import Any

_SERVER = forkserver.ForkServer()
"""A server of our own: `multiprocessing` has only one per process, whose imports would affect everyone who uses it."""


class _Popen(popen_forkserver.Popen):
    """Like its base class, but with our server in place of the one of `multiprocessing`."""

    _fds: list[int]

    def _launch(self, process_obj: Any) -> None:
        content = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process_obj._name), content)
            reduction.dump(process_obj, content)
        finally:
            set_spawning_popen(None)
        self.sentinel, child = _SERVER.connect_to_new_process(self._fds)
        kept = os.dup(child)  # the process ends with this one, which keeps the pipe open
        self.finalizer = util.Finalize(self, util.close_fds, (kept, self.sentinel))  # pyright: ignore[reportAttributeAccessIssue]
        with open(child, "wb", closefd=True) as pipe:
            pipe.write(content.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)


class _Process(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _Popen(process_obj)


class _Context(ForkServerContext):
    Process = _Process


def forking(ahead: Sequence[str]) -> ForkServerContext:
    """Return a `multiprocessing` context whose processes are forked from one that has already imported modules.

    Args:
        ahead: names of these modules. Only the first call in a process counts.
    """
    _SERVER.set_forkserver_preload(list(ahead))
    return _Context()
