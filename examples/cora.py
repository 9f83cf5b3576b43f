"""Which topic a paper has, from its words and citations: a graph convolutional network (Kipf and Welling 2017, arXiv:1609.02907) on Cora.

CORA=cora.npz sparsify run examples/cora.py:gcn --data examples/cora.py:papers --sparsity 0.9 --epochs 100 --out runs/cora
CORA=cora.npz sparsify run examples/cora.py:rare_gcn --data examples/cora.py:rare --method "calirare(gmp)" --epochs 100 --out runs/rare

The graph is a part of the model: words and citations are buffers, and the input is numbers of papers, so the exported file answers for
papers by number. CORA names a file of arrays: ``x_indptr``, ``x_indices`` and ``x_shape`` (binary features [N, F] by rows, as in CSR
matrices), ``edge_index`` [2, E], ``y`` [N], and ``train_idx``, ``val_idx`` and ``test_idx``. ``rare_gcn`` and ``rare`` tell one topic from
all others.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn

RARE = 0
"""The rare class: class 1 of `rare`."""
Part = tuple[np.ndarray, np.ndarray]


def arrays() -> dict[str, np.ndarray]:
    """The arrays of the file that the environment variable CORA names, or of cora.npz in this folder."""
    path = os.environ.get("CORA", "cora.npz")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"there is no file {path!r}; set the environment variable CORA to one with the arrays of this example"
        )
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def features(found: dict[str, np.ndarray]) -> Tensor:
    """The words of each paper, float32 [N, F]; each row has length 1, or 0 for a paper without words."""
    rows = torch.from_numpy(found["x_indptr"].astype(np.int64)).diff()
    x = torch.zeros(*found["x_shape"].tolist())
    x[torch.arange(len(rows)).repeat_interleave(rows), torch.from_numpy(found["x_indices"].astype(np.int64))] = 1
    return nn.functional.normalize(x)


def normalised(edges: np.ndarray, nodes: int) -> Tensor:
    """D^-1/2 (A + I) D^-1/2, float32 [N, N], of edges [2, E] in both directions, with D the row sums of A + I."""
    joined = torch.eye(nodes)
    joined[tuple(torch.from_numpy(edges.astype(np.int64)))] = 1
    root = joined.sum(1).rsqrt()
    return root[:, None] * joined * root[None, :]


class GCN(nn.Module):
    """Two graph convolutions; the input is numbers of nodes, int64 [B].

    A convolution is a linear layer of the mean over neighbours. The first mean is of the features and never changes, so it is the buffer
    ``near``. The last linear layer comes after its mean, which is the same sum, and makes the logits. Features that no node of the batch
    reads are set to 0, which changes no logit: it lets the first layer depend on the input, as weights that get masks do.
    """

    near: Tensor
    adjacency: Tensor

    def __init__(self, x: Tensor, adjacency: Tensor, classes: int, *, hidden: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("near", adjacency @ x)
        self.register_buffer("adjacency", adjacency)
        self.first, self.last = nn.Linear(x.shape[1], hidden), nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Tensor) -> Tensor:
        """Logits [B, K]."""
        rows = self.adjacency[nodes]
        read = rows.amax(0) > 0
        hidden = self.dropout(torch.relu(self.first(self.near * read[:, None])))
        return self.last(rows @ hidden)


def network(classes: int) -> GCN:
    """A network for the graph of the file."""
    found = arrays()
    x = features(found)
    return GCN(x, normalised(found["edge_index"], len(x)), classes)


def gcn() -> GCN:
    """For all classes."""
    return network(int(arrays()["y"].max()) + 1)


def rare_gcn() -> GCN:
    """For two classes."""
    return network(2)


def papers() -> dict[str, Part]:
    """Numbers and classes of the papers of each part."""
    found = arrays()
    parts = {"train": found["train_idx"], "validation": found["val_idx"], "test": found["test_idx"]}
    return {name: (rows.astype(np.int64), found["y"][rows].astype(np.int64)) for name, rows in parts.items()}


def rare(minority: int = RARE) -> dict[str, Part]:
    """The same papers; class 1 is those of one topic, class 0 all others."""
    return {name: (rows, (y == minority).astype(np.int64)) for name, (rows, y) in papers().items()}
