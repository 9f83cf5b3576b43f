"""Several processes: masks would differ, so sparse methods are refused."""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

import sparsify as sp
from sparsify.errors import TrainingError
from tests.training.loops import started


@pytest.fixture(params=[0, 1])
def one_of_two_processes(request):
    """Makes this process the first or the second of two; torch's backend for tests stands for the other."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=2)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_of_two_processes")
def test_two_processes_are_refused_for_a_sparse_method():
    with pytest.raises(TrainingError, match=r"torch\.distributed runs 2 processes.*Train in one process"):
        started(sp.methods.static_random(density=0.5))
    started(sp.methods.dense())
