"""From weights to losses: many displaced copies of the parameters at once."""
