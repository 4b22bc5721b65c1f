"""The loss of a model on fixed data as a function of its parameters."""
