"""The training loop that benchmarks of small networks share; a script reads it with `runpy.run_path`."""

from __future__ import annotations

import torch

import sparsify as sp
from sparsify.parts.samples import TensorSamples
from sparsify.training.batches import Batches
from sparsify.training.settings import Settings, build_optimizer, lr_factor


def steps_of(samples: TensorSamples, settings: Settings) -> int:
    """The steps of a training; a batch that is not full is left out."""
    return settings.epochs * (len(samples) // settings.batch_size)


def trained(method: sp.Method, program: sp.Program, samples: TensorSamples, settings: Settings) -> sp.SparseTrainer:
    """Train a program on the CPU; returns its trainer, which is finished, and leaves the program in eval mode."""
    steps = steps_of(samples, settings)
    batches, program = Batches(samples, settings, torch.device("cpu")), program.train()
    optimizer = build_optimizer(program, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps, settings))
    trainer = sp.attach(method, program, optimizer, total_steps=steps, seed=settings.seed)
    while trainer.steps < steps:
        for x, y in batches.epoch(trainer.steps):
            trainer.loss(program(x), y, inputs=x).backward()
            trainer.step()
            scheduler.step()
            optimizer.zero_grad()
    trainer.finish()
    program.eval()
    return trainer
