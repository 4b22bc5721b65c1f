"""Shells for other frameworks; none is imported before it is asked for."""
