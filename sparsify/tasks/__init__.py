"""Tasks: what the outputs of a model mean. See `sparsify.tasks.base.Task`."""

from sparsify.tasks.base import Shape as Shape
from sparsify.tasks.base import Task as Task
from sparsify.tasks.base import headline as headline
from sparsify.tasks.classes import Classification as Classification
from sparsify.tasks.classes import Dense as Dense
from sparsify.tasks.classes import Sequence as Sequence
from sparsify.tasks.contract import check_task as check_task
from sparsify.tasks.custom import Custom as Custom
from sparsify.tasks.labels import Binary as Binary
from sparsify.tasks.labels import Multilabel as Multilabel
from sparsify.tasks.registry import TASKS as TASKS
from sparsify.tasks.registry import build as build
from sparsify.tasks.registry import infer as infer
from sparsify.tasks.registry import kind as kind
from sparsify.tasks.registry import register as register
from sparsify.tasks.regression import Regression as Regression

__all__ = [
    "TASKS", "Binary", "Classification", "Custom", "Dense", "Multilabel", "Regression", "Sequence", "Shape", "Task",
    "build", "check_task", "headline", "infer", "kind", "register",
]  # fmt: skip
