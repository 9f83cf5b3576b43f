"""Pure maths: tensors in, tensors out. Nothing here touches modules, graphs, optimizers, files or the global RNG."""
