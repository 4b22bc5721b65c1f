"""The diagonal of the Hessian or Gauss-Newton matrix."""
