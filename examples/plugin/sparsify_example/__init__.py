"""A method, an allocation, a pass and a task for sparsify."""

from sparsify_example.activations import BoundActivations as BoundActivations
from sparsify_example.inputs import by_inputs as by_inputs
from sparsify_example.mest import mest as mest
from sparsify_example.ordinal import Ordinal as Ordinal
