"""What are the eigenvalues of the Hessian, and is the optimizer stable?"""
