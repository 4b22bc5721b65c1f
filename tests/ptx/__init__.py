"""Test tools that verify GPU kernels without a GPU.

``ptx.aot`` compiles Triton and CUDA C kernels for real chips; ``ptx.simulator`` executes the PTX they produced with NumPy,
checks every access to memory, and returns the arrays for a comparison with a reference.
"""
