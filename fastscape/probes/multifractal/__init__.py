"""Scaling of the loss's response with the distance."""
