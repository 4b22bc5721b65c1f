"""Array mathematics without a model that several questions share."""
