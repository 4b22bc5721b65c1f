"""Products with Hessians and Gauss-Newton matrices, on the fastest path that runs the model."""
