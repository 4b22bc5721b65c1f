"""All measures of a checkpoint beside one another."""
