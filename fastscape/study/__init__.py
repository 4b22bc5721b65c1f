"""The comparison of architectures: several seeds of each trained with the tracker, probed, and set against the source."""
