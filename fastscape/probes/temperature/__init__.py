"""Noise of the gradients, and the temperature of training."""
