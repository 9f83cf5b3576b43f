"""Calibration heads: outputs computed from the output that a task reads, and fitted on held-out samples. See `Head`."""

from sparsify.heads.base import Call as Call
from sparsify.heads.base import Fitted as Fitted
from sparsify.heads.base import Head as Head
from sparsify.heads.base import HeldOut as HeldOut
from sparsify.heads.base import State as State
from sparsify.heads.base import run as run
from sparsify.heads.contract import check_head as check_head
from sparsify.heads.ensemble import EnsembleTemperature as EnsembleTemperature
from sparsify.heads.feature_outliers import OtherFeatures as OtherFeatures
from sparsify.heads.frequencies import Frequencies as Frequencies
from sparsify.heads.frequencies import Histogram as Histogram
from sparsify.heads.frequencies import Isotonic as Isotonic
from sparsify.heads.h_calibration import HCalibration as HCalibration
from sparsify.heads.interval import Interval as Interval
from sparsify.heads.masked import MaskedTemperature as MaskedTemperature
from sparsify.heads.matrix import Dirichlet as Dirichlet
from sparsify.heads.matrix import Matrix as Matrix
from sparsify.heads.outliers import Outlier as Outlier
from sparsify.heads.registry import HEADS as HEADS
from sparsify.heads.registry import fitting as fitting
from sparsify.heads.registry import named as named
from sparsify.heads.registry import owner as owner
from sparsify.heads.registry import register as register
from sparsify.heads.rejection import Accept as Accept
from sparsify.heads.scaling import LabelTemperature as LabelTemperature
from sparsify.heads.scaling import Scaling as Scaling
from sparsify.heads.scaling import Temperature as Temperature
from sparsify.heads.scaling import Vector as Vector
from sparsify.heads.sets import Aps as Aps
from sparsify.heads.sets import ClassLac as ClassLac
from sparsify.heads.sets import Lac as Lac
from sparsify.heads.sets import PredictionSet as PredictionSet
from sparsify.heads.sets import Raps as Raps

__all__ = [
    "HEADS", "Accept", "Aps", "Call", "ClassLac", "Dirichlet", "EnsembleTemperature", "Fitted", "Frequencies", "HCalibration",
    "Head", "HeldOut", "Histogram", "Interval", "Isotonic", "LabelTemperature", "Lac", "MaskedTemperature", "Matrix", "OtherFeatures",
    "Outlier", "PredictionSet", "Raps", "Scaling", "State",
    "Temperature", "Vector", "check_head", "fitting", "named", "owner", "register", "run",
]  # fmt: skip
