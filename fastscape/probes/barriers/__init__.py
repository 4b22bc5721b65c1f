"""Barriers of the loss between two solutions."""
