"""Train networks that are sparse, reliable and fast, with torch.fx passes, and export them as verified ONNX.

A name is loaded when it is first asked for, so that ``import sparsify`` and the command's help load no torch.
"""

from importlib import import_module

from sparsify.version import __version__ as __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sparsify import methods as methods
    from sparsify.exporters import Preprocessing as Preprocessing
    from sparsify.exporters import export as export
    from sparsify.ir import PerStep as PerStep
    from sparsify.ir import Program as Program
    from sparsify.ir import trace as trace
    from sparsify.methods import Method as Method
    from sparsify.passes import Pipeline as Pipeline
    from sparsify.training import SparseTrainer as SparseTrainer
    from sparsify.training import attach as attach

_ROOMS = {
    "Method": "methods",
    "PerStep": "ir",
    "Pipeline": "passes",
    "Preprocessing": "exporters",
    "Program": "ir",
    "SparseTrainer": "training",
    "attach": "training",
    "export": "exporters",
    "trace": "ir",
}
__all__ = [
    "Method", "PerStep", "Pipeline", "Preprocessing", "Program", "SparseTrainer", "__version__", "attach", "export", "methods", "trace",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "methods":
        return import_module("sparsify.methods")
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"sparsify.{_ROOMS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
