"""Train networks that are sparse, reliable and fast, with torch.fx passes, and export them as verified ONNX."""

from sparsify import methods as methods
from sparsify.exporters import Preprocessing as Preprocessing
from sparsify.exporters import export as export
from sparsify.ir import Program as Program
from sparsify.ir import trace as trace
from sparsify.methods import Method as Method
from sparsify.passes import Pipeline as Pipeline
from sparsify.training import SparseTrainer as SparseTrainer
from sparsify.training import attach as attach
from sparsify.version import __version__ as __version__
