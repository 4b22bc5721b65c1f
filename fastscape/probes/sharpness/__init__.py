"""Rise of the loss within a ball."""
