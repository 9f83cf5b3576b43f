"""A method, an allocation, a pass, a task and a calibration head for sparsify."""

from sparsify_example.activations import BoundActivations as BoundActivations
from sparsify_example.inputs import by_inputs as by_inputs
from sparsify_example.mest import mest as mest
from sparsify_example.ordinal import Ordinal as Ordinal
from sparsify_example.platt import Platt as Platt
