"""Difference propagation: finite-scale second differences without cancellation, and the exact 2-jet as their limit."""
