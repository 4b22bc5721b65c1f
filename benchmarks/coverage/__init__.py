"""How often published 95 % intervals hold the truth, on problems whose truth is known: ``python -m benchmarks.coverage``."""
