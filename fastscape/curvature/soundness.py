"""Whether products are those of the loss: the same twice, of a symmetric matrix, borne out by losses, and by every path."""

from __future__ import annotations

import math
from itertools import combinations

import torch

from fastscape.curvature.flat import norm
from fastscape.curvature.ggn import GaussNewtonDifference
from fastscape.curvature.gradient_difference import DifferencePath, InaccurateDifferenceError
from fastscape.curvature.paths import Product, ProductPath
from fastscape.curvature.point import LossCurvature, UnsoundProductError
from fastscape.curvature.program import Parts
from fastscape.curvature.sketch import Sketch, TrialProducts
from fastscape.curvature.slopes import DETACHED
from fastscape.evaluation.determinism import NondeterministicLossError
from fastscape.evaluation.trial import Refusal
from fastscape.runs.peak import MemoryCapError, peak_bytes

_WRONG = 1e-2  # relative difference from a difference of gradients above which a custom backward is not trusted
_ASYMMETRY = {torch.float32: 1e-3, torch.float64: 1e-5}  # measured 1e-7 to 1e-5; 1e-16, or 1e-7 of float32 steps inside


class AsymmetricProductError(ValueError):
    """Products are not those of a symmetric matrix."""


class Soundness:
    """Checks the products of paths: the first that is sound is what the others are compared with.

    Args:
        products: with the vectors of a trial.
        slow: whether products are not to be repeated.
        limit: bytes of tensors that a computation may hold.
        borne_out: names of paths whose products were found to be those of the loss before; grows. ``None``: not to be compared.

    Attributes:
        reference: the first product, once it is found to be sound.
        asymmetry: |u'Hv - v'Hu| relative to the terms of the sums.
        note: what the losses near w say of products that they cannot judge.
    """

    def __init__(self, products: TrialProducts, limit: float, borne_out: set[str] | None, *, slow: bool) -> None:
        self._products, self._program, self._batch = products, products.program, products.batch
        self._limit, self._borne_out, self._slow = limit, borne_out, slow
        self.reference: Sketch | None = None
        self.asymmetry, self.note = math.nan, ""

    def check(self, path: ProductPath, product: Product, first: Sketch, second: Sketch | None, room: float) -> None:
        """Hold the first products of a path against the loss in ``room`` bytes, or against the path before it.

        Raises:
            UnsoundProductError, AsymmetricProductError, Refusal: they are not those of the Hessian.
            NondeterministicLossError: two products of the same vector differ.
        """
        self._check_finite(first)
        if self.reference is not None:
            self.compare(path, first)
            return
        if not path.exact:  # first: of what is asymmetric it may name the cause
            self._compare_with_losses(path, product, room)
        self._check(path, product, first, second)
        if path.exact:
            self._compare_with_losses(path, product, room)
        self.reference = first

    def compare(self, path: ProductPath, found: Sketch) -> None:
        """Raise a :class:`Refusal` unless a product is that of the first path."""
        assert self.reference is not None
        tolerance = {torch.float32: 3e-3, torch.float64: 1e-5}[self._program.leaves[0].dtype]
        if isinstance(path, DifferencePath):
            tolerance = max(10 * (path.error or 0.0), tolerance)
        distance = found.distance(self.reference)
        if distance > tolerance:
            raise Refusal(
                f"its products differ from those before by {distance:.1g}: the model accesses parameters outside "
                "named_parameters() (a list, a closure), or writes into what it keeps"
            )

    def _check(self, path: ProductPath, product: Product, first: Sketch, second: Sketch | None) -> None:
        """Repeat the first product where that is quick, compare u'Hv with v'Hu, and custom backwards with differences."""
        if second is None and self._products.given is None:
            second = self._products.again(product, 1)
        if not self._slow or path.name == "replay":
            change = self._products.again(product, 0).distance(first)
            if change > (1e-4 if path.exact else 1e-3):
                raise NondeterministicLossError(
                    f"products must be deterministic, got two products of one vector that differ by {change:.1g}: the loss is "
                    "the same twice, its gradient is not (an operation without a deterministic backward, or a hook that keeps "
                    "state: try torch.use_deterministic_algorithms(True); in a replay, an operation in place: use method=None)"
                )
        if second is not None:  # else there is no memory for a second vector
            self._check_symmetry(path, product, first, second)
        if path.exact and self._program.differentiates_by_hand(self._batch):
            self._compare_with_differences(first)

    def _check_finite(self, found: Sketch) -> None:
        """Refuse NaN and inf in a product where the gradient has none.

        Raises:
            UnsoundProductError: as it says.
        """
        if math.isfinite(found.norm) or (self.reference is not None and not math.isfinite(self.reference.norm)):
            return
        if math.isfinite(norm(self._program.gradient(self._batch))):
            raise UnsoundProductError(
                "its products hold NaN or inf where the gradient has none: an operation has no finite second derivative at these "
                "weights as torch computes it (a norm or a root at zero), or it overflows"
            )

    def _compare_with_losses(self, path: ProductPath, product: Product, limit: float) -> None:
        """Compare v'Hv with second differences of the loss, once for a path.

        Raises:
            UnsoundProductError: they differ, or a product that is zero is not borne out.
        """
        if self._borne_out is None or path.name in self._borne_out:
            return
        vector = self._products.vectors((0,)) if self._products.given is not None else self._products.gaussian()
        found = product(vector)
        self._products.done += 1
        words, agrees = self._judged(vector, found, getattr(path, "error", 0.0) or 0.0, limit)
        nothing = not any(bool(part.any()) for part in found)
        if words == DETACHED and not path.exact:  # what differences of it make is not symmetric
            raise UnsoundProductError(
                f"differences of gradients do not give a Hessian here: {words}; quadratic_forms and responses use the loss itself"
            )
        if agrees is False or (nothing and agrees is None and (words or not path.exact)):
            raise UnsoundProductError(words or "its products are zero, and no losses near w bear that out")
        self.note = self.note or words
        self._borne_out.add(path.name)

    def _judged(self, vector: Parts, found: Parts, error: float, limit: float) -> tuple[str, bool | None]:
        first = [[part[0] for part in parts] for parts in (vector, found)]

        def judge() -> tuple[str, bool | None]:
            return LossCurvature(self._program, self._batch).contradiction(first[0], first[1], error)

        try:
            return peak_bytes(judge, limit)[0]
        except Exception:  # no memory, no float64, a kink without a rule: nothing to compare with
            return "", None

    def _check_symmetry(self, path: ProductPath, product: Product, first: Sketch, second: Sketch) -> None:
        """Compare u'Hv with v'Hu.

        Raises:
            AsymmetricProductError: they differ.
        """
        found = [first, second, *(self._products.again(product, which) for which in self._products.used[2:])]
        self.asymmetry = max(self._products.skew(found, i, j) for i, j in combinations(self._products.used, 2))
        if self.asymmetry > (_ASYMMETRY[self._program.leaves[0].dtype] if path.exact else 0.3):
            raise AsymmetricProductError(
                f"products must be those of a symmetric matrix, got u'Hv and v'Hu that differ by {self.asymmetry:.1g} of their "
                f"terms on the path {path.name!r}; is a custom backward of the model wrong, or marked @once_differentiable, "
                "which torch takes for a constant? Its double backward must differentiate what its backward computes "
                f"(check it with torch.autograd.gradgradcheck){self._inside()}"
            )

    def _inside(self) -> str:
        narrow = self._program.narrow
        return "" if narrow is None else f"; or the rounding to {str(narrow[0])[6:]} inside the model ({narrow[1]})"

    def _compare_with_differences(self, first: Sketch) -> None:
        """Compare a product through a custom backward with a difference of gradients, or of outputs for G, which needs no more.

        Raises:
            AsymmetricProductError: they differ.
        """
        hessian = self._borne_out is not None
        path = DifferencePath(self._program) if hessian else GaussNewtonDifference(self._program)
        try:
            distance = self._products.measured(path.build(self._batch), (0,), self._limit)[0][0].distance(first)
        except (InaccurateDifferenceError, MemoryCapError):
            return
        if distance > max(_WRONG, 10 * (path.error or 0.0)):
            raise AsymmetricProductError(
                f"products through a custom backward must be those of the {'Hessian' if hessian else 'Gauss-Newton matrix'}, got "
                f"one that differs by {distance:.1g} from a difference of {'gradients' if hessian else 'outputs'}: the backward "
                f"{'keeps a part of its input as a constant' if hessian else 'is not that of the forward, or not linear'}; "
                f"torch.autograd.{'gradgradcheck' if hessian else 'gradcheck'} shows where"
            )
