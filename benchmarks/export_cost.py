"""What an export costs: time of the processor and memory of the process, for a vision transformer of the size of ViT-B.

    python benchmarks/export_cost.py [--layers 12] [--bare]

Prints the size of the weights, the highest memory of the process over what it held before the export, and seconds of the processor.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import sparsify as sp
from sparsify.exporters.conversion import convert

MIB = 2**20


class Block(nn.Module):
    """A pre-norm block: attention over tokens, and two linear layers."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Patches of 16 x 16 pixels, blocks, and a classifier of the mean token."""

    def __init__(self, layers: int, width: int = 768, hidden: int = 3072, heads: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.blocks = nn.Sequential(*(Block(width, hidden, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def resident() -> int:
    """Bytes of memory the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def highest() -> int:
    """The most bytes of memory the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def export(layers: int, *, bare: bool) -> None:
    """Measure one export, or torch.onnx.export of the same program without anything of this package around it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.randn(2, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.process_time()
        program = sp.trace(Transformer(layers).eval(), (x,)).eval()
        traced, before = time.process_time() - started, resident()
        print(f"trace: {traced:.1f} s, highest memory {highest() / MIB:.0f} MiB, held {before / MIB:.0f} MiB")
        weights = sum(p.numel() * p.element_size() for p in program.parameters())
        started = time.process_time()
        if bare:
            convert(program, [x], 20)
        else:
            with tempfile.TemporaryDirectory() as folder:
                sp.export(program, Path(folder) / "model.onnx", inputs=[x])
    seconds, most = time.process_time() - started, highest() - before
    print(
        f"{'torch.onnx.export' if bare else 'export'}: weights {weights / MIB:.0f} MiB, {seconds:.1f} s, highest memory "
        f"{most / MIB:.0f} MiB over what was held, {most / weights:.1f} x the weights"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--bare", action="store_true", help="torch.onnx.export only")
    given = parser.parse_args()
    export(given.layers, bare=given.bare)
