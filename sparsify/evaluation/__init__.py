"""Measures ONNX files on data, in numpy and ONNX Runtime: figures, intervals and comparisons, without torch."""

from sparsify.evaluation.evaluating import evaluate as evaluate
from sparsify.evaluation.feeding import Preparation as Preparation
from sparsify.evaluation.folder import write_evaluation as write_evaluation
from sparsify.evaluation.model_file import OutputNames as OutputNames
from sparsify.reading.shifts import shifted as shifted

__all__ = ["OutputNames", "Preparation", "evaluate", "shifted", "write_evaluation"]
