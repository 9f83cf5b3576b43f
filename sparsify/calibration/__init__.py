"""Fitting the calibration head on held-out data."""

from sparsify.calibration.fit import CalibrationLog as CalibrationLog
from sparsify.calibration.fit import evaluate as evaluate
from sparsify.calibration.fit import fit as fit
from sparsify.calibration.fit import installed_kind as installed_kind
from sparsify.calibration.fit import kind_of as kind_of
from sparsify.ir.heads import head_of as head_of
