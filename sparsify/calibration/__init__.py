"""Fitting the heads of a program, and choosing one, on held-out data."""

from sparsify.calibration.fit import CalibrationLog as CalibrationLog
from sparsify.calibration.fit import evaluate as evaluate
from sparsify.calibration.fit import fit as fit
from sparsify.calibration.fit import installed_kind as installed_kind
from sparsify.calibration.fit import kind_of as kind_of
from sparsify.calibration.outliers import Choice as Choice
from sparsify.calibration.outliers import choose_outlier_score as choose_outlier_score
from sparsify.calibration.outliers import outlier_scores as outlier_scores
from sparsify.ir.heads import head_of as head_of
