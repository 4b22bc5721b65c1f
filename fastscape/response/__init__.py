"""Responses of the loss to directions, and the precision that gives them."""
