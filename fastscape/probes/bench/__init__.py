"""Speed of the kernels and probes on this machine."""
