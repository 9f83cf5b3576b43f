"""A griffe extension: a name that a package imports from a file of the same name is what is imported, as in Python."""

from __future__ import annotations

from typing import Any

from griffe import Alias, Extension, Module


class Shadowed(Extension):
    """``sparsify.methods.rigl`` is the function; without this, griffe takes it for the file ``methods/rigl.py``."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Put the functions in the place of their files, in a package and in those inside it."""
        for package in [*pkg.modules.values()]:
            if package.is_init_module:
                self.on_package(pkg=package)
        for name, path in pkg.imports.items():
            file = pkg.members.get(name)
            if isinstance(file, Module) and path == f"{file.path}.{name}":
                pkg.set_member(name, Alias(name, file.members[name], parent=pkg))
