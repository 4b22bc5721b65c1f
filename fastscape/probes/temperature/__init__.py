"""How noisy are the gradients, and at which temperature does training run?"""
