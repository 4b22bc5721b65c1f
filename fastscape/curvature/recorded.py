"""Products of a curvature matrix that are taken from a journal where they are there, and how they are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fastscape.curvature.choice import ProductChoice
from fastscape.curvature.plan import Plan
from fastscape.curvature.products import REPLAY_AFTER, Products
from fastscape.curvature.selection import block_key
from fastscape.curvature.workspace import SLOW, Workspace
from fastscape.evaluation.points import Array
from fastscape.runs.evaluations import Evaluations

Numbers = Callable[[Tensor, Array], dict[str, Array]]  # of H V [D, K], and forms of every batch [batches, K]


class RecordedProducts:
    """Products of a run that a journal keeps; see :class:`Products` for the methods.

    The path, and all else that was measured when it was chosen, is in the journal too, and obeyed. What takes long to set up is
    tried after as many products as would have taken the time of 500 gradients by the first measurement, not after that time,
    so that a run which goes on does it where one that nothing disturbed does.

    Args:
        inner: makes them.
        evaluations: of the run.
        memory: bytes, if they were asked for; with others what was chosen is chosen anew.
    """

    def __init__(self, inner: Products, evaluations: Evaluations, memory: int | None) -> None:
        self.inner, self.evaluations, self._memory = inner, evaluations, memory
        self._plans: dict[int, Plan] = {}
        self._patient, inner.impatient = inner.impatient, False
        self._used: Counter[int] = Counter()
        self._taken = self._taken_nan = 0

    @property
    def space(self) -> Workspace:
        """The loss."""
        return self.inner.space

    @property
    def products(self) -> int:
        """Vectors multiplied so far, trials and those that were taken included."""
        return self.inner.products + self._taken

    @property
    def nan_products(self) -> int:
        """Of them, those with NaN or inf."""
        return self.inner.nan_products + self._taken_nan

    def release(self) -> None:
        """Free what is kept of batches."""
        self.inner.release()

    def prepare(self, count: int, rows: Tensor | None = None, *, thorough: bool = False) -> ProductChoice:
        """Choose as the first run did, or for it."""
        key = block_key(count)
        plan = self._plans.get(key)
        if plan is None or (thorough and not plan.thorough):
            made: list[Plan] = []

            def make() -> dict[str, Any]:
                before = self.inner.products
                self.inner.prepare(count, rows, thorough=thorough)
                made.append(Plan.made(self.inner.space, self.inner.selection, key))
                return {"plan": made[0].to_dict(), "trials": self.inner.products - before}

            found = self.evaluations.taken("method", (key, thorough, self._memory), make, always=True)
            plan = self._plans[key] = Plan.of(found["plan"])
            if not made:
                self.inner.obey(key, plan)
                self._taken += int(found["trials"])
        return plan.choice

    def multiply(self, rows: Tensor) -> Tensor:
        """See :meth:`Products.multiply`; a file of K D numbers."""
        found = self._asked("product", rows, (), lambda: {"product": self.inner.multiply(rows)})
        product: Tensor = found["product"]
        return product.to(rows.device)

    def forms(self, rows: Tensor, *, keep: bool) -> tuple[Tensor | None, Array]:
        """See :meth:`Products.forms`; the products that are kept are."""

        def make() -> dict[str, Any]:
            product, forms = self.inner.forms(rows, keep=keep)
            return {"forms": forms} | ({} if product is None else {"product": product})

        found = self._asked("forms", rows, (keep,), make)
        product = found.get("product")
        return None if product is None else product.to(rows.device), found["forms"]

    def reduced(self, rows: Tensor, make: Callable[[], dict[str, Array]], request: Sequence[Any]) -> dict[str, Array]:
        """What ``make`` makes of products of rows, which are not kept; ``request``: what else it depends on."""
        return self._asked("numbers", rows, request, make)

    def _asked(self, kind: str, rows: Tensor, request: Sequence[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        choice = self.prepare(len(rows), rows)
        before, nan = self.inner.products, self.inner.nan_products

        def counted() -> dict[str, Any]:
            return make() | {"nan products": self.inner.nan_products - nan}

        found = self.evaluations.taken(kind, (rows, request), counted)
        if self.inner.products == before:
            self._taken += len(rows)
            self._taken_nan += int(found["nan products"])
        self._spend(len(rows), choice)
        return found

    def _spend(self, count: int, choice: ProductChoice) -> None:
        key = block_key(count)
        self._used[key] += count
        settled = not self._patient or self._plans[key].thorough or choice.gradient_seconds > SLOW
        if not settled and self._used[key] * choice.gradients > REPLAY_AFTER:
            self.prepare(key, thorough=True)


def reduced(
    products: Products | RecordedProducts, rows: Tensor, several: bool, numbers: Numbers, request: Sequence[Any]
) -> dict[str, Array]:
    """What ``numbers`` makes of products of rows, and of forms where there are several batches: all that is recorded."""
    source = products.inner if isinstance(products, RecordedProducts) else products

    def make() -> dict[str, Array]:
        if not several:
            return numbers(source.multiply(rows).T, np.zeros((1, len(rows))))
        found, forms = source.forms(rows, keep=True)
        assert found is not None
        return numbers(found.T, forms)

    return products.reduced(rows, make, request) if isinstance(products, RecordedProducts) else make()
