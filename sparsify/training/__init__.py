"""Training a masked program: `attach` for the user's own loop, `train` for the command's."""

from sparsify.training.attaching import attach as attach
from sparsify.training.checkpoint import load_checkpoint as load_checkpoint
from sparsify.training.checkpoint import save_checkpoint as save_checkpoint
from sparsify.training.rehearsal import rehearse as rehearse
from sparsify.training.savings import Savings as Savings
from sparsify.training.settings import Settings as Settings
from sparsify.training.state import SparseTrainer as SparseTrainer
from sparsify.training.step_times import StepTimes as StepTimes
from sparsify.training.trainer import Interrupted as Interrupted
from sparsify.training.trainer import Trained as Trained
from sparsify.training.trainer import stop_flag as stop_flag
from sparsify.training.trainer import train as train
