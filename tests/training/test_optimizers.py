"""Several processes: masks would differ, so sparse methods are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, torch, sparsify as sp
from sparsify.errors import TrainingError
rank, where = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=2)
program = sp.trace(torch.nn.Linear(8, 4), (torch.randn(2, 8),)).train()
optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
try:
    sp.attach(sp.methods.static_random(density=0.5), program, optimizer, total_steps=4)
except TrainingError as error:
    print(error)
sp.attach(sp.methods.dense(), program, optimizer, total_steps=4)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_two_processes_are_refused_for_a_sparse_method(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting")], env=environment, text=True, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    for output in outputs:
        assert "torch.distributed runs 2 processes" in output and "Train in one process" in output
