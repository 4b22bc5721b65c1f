"""Eigenvalues of the Hessian, and the stability of the optimizer."""
