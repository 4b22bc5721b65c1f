"""How work is done: budgets, checkpoints, optimizers, provenance."""
