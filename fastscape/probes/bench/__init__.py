"""How fast are the kernels and probes on this machine?"""
