"""Geometry of the loss while a model trains."""
