"""Quadratic forms d'Hd, of one direction or on average."""
