"""Writing a program for deployment."""

from sparsify.exporters.onnx import ExportResult as ExportResult
from sparsify.exporters.onnx import export as export
from sparsify.exporters.preprocessing import Preprocessing as Preprocessing

__all__ = [
    "ExportResult", "Preprocessing", "export",
]  # fmt: skip
