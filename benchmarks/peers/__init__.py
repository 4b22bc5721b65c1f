"""Curvature by fastscape, its peers and plain torch in one run: products, quadratic forms, spectra, orthogonalisation, memory.

``make peers`` runs everything (see ``python -m peers --help`` for parts). Every measurement is a process of its own that
reports events as lines of JSON, so that a peer that crashes or runs out of time is a result and never a lost run.
"""

PROBLEMS = ("mlp", "wide-mlp", "gpt", "resnet18")
PACKAGES = ("products", "forms", "memory", "orthogonalisation", "spectrum")
