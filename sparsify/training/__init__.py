"""Training a masked program: three added lines in the user's own loop."""

from sparsify.training.state import SparseTrainer as SparseTrainer, attach as attach
