"""Execution of runs: budgets, checkpoints, optimizers, provenance."""
