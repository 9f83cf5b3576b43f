"""Train networks that are sparse, reliable and fast, with torch.fx passes, and export them as verified ONNX."""

from sparsify.ir import Program as Program
from sparsify.ir import trace as trace
from sparsify.passes import Pipeline as Pipeline
