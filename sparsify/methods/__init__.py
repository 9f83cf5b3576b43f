"""Methods: compositions of parts. Each is a function that returns a `Method`."""

from sparsify.methods.adversarial import adversarial as adversarial
from sparsify.methods.agent import agent as agent
from sparsify.methods.averaged import averaged as averaged
from sparsify.methods.balancing_act import balancing_act as balancing_act
from sparsify.methods.base import Averaging as Averaging
from sparsify.methods.base import Method as Method
from sparsify.methods.calirare import calirare as calirare
from sparsify.methods.cigl import cigl as cigl
from sparsify.methods.class_weighted import class_weighted as class_weighted
from sparsify.methods.dense import dense as dense
from sparsify.methods.distilled import distilled as distilled
from sparsify.methods.dst_ee import dst_ee as dst_ee
from sparsify.methods.focal import dual_focal as dual_focal
from sparsify.methods.focal import focal as focal
from sparsify.methods.gradual_magnitude import gmp as gmp
from sparsify.methods.granet import granet as granet
from sparsify.methods.iterative_magnitude import imp as imp
from sparsify.methods.itop import itop as itop
from sparsify.methods.label_smoothing import label_smoothing as label_smoothing
from sparsify.methods.label_smoothing import maxsup as maxsup
from sparsify.methods.logit_norm import logit_norm as logit_norm
from sparsify.methods.mbls import acls as acls
from sparsify.methods.mbls import mbls as mbls
from sparsify.methods.mixup import mixup as mixup
from sparsify.methods.mixup import rankmixup as rankmixup
from sparsify.methods.mmce import mmce as mmce
from sparsify.methods.moon import moon as moon
from sparsify.methods.moon import widened as widened
from sparsify.methods.ndsnn import ndsnn as ndsnn
from sparsify.methods.one_shot import one_shot as one_shot
from sparsify.methods.per_step import per_step as per_step
from sparsify.methods.ps_kd import ps_kd as ps_kd
from sparsify.methods.registry import METHODS as METHODS
from sparsify.methods.registry import WRAPPERS as WRAPPERS
from sparsify.methods.registry import build as build
from sparsify.methods.rigl import rigl as rigl
from sparsify.methods.sparse_evolutionary import set as set
from sparsify.methods.srigl import srigl as srigl
from sparsify.methods.static_random import static_random as static_random
from sparsify.methods.weight_dropout import weight_dropout as weight_dropout
from sparsify.parts.corrections import Correction as Correction

__all__ = [
    "METHODS", "WRAPPERS", "Averaging", "Correction", "Method", "acls", "adversarial", "agent", "averaged", "balancing_act", "build",
    "calirare", "cigl", "class_weighted", "dense", "distilled", "dst_ee", "dual_focal", "focal", "gmp", "granet", "imp", "itop",
    "label_smoothing", "logit_norm", "maxsup", "mbls", "mixup", "mmce", "moon", "ndsnn", "one_shot", "per_step", "ps_kd", "rankmixup",
    "rigl", "srigl", "static_random", "weight_dropout", "widened",
]  # fmt: skip
"""Without `set`, so that ``from sparsify.methods import *`` leaves the builtin alone; write `sparsify.methods.set`."""
