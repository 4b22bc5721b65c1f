"""Evaluate losses and responses: numerically careful, on the fastest path that runs the model."""

from fastscape.evaluation.determinism import NondeterministicLossError
from fastscape.evaluation.losses import losses
from fastscape.evaluation.responses import PrecisionWarning, Responses, responses

__all__ = ["NondeterministicLossError", "PrecisionWarning", "Responses", "losses", "responses"]
