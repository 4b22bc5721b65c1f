"""The step along an update at which the loss begins to rise."""
