"""Curvature matrices as linear operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from numbers import Real
from typing import Any, Self, TypeVar

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from fastscape._checks import check_memory, flag, integer
from fastscape._renamed import METHOD, renamed
from fastscape.curvature.choice import ProductChoice
from fastscape.curvature.flat import Layout
from fastscape.curvature.paths import Matrix, PathName, checked_path
from fastscape.curvature.products import Products
from fastscape.curvature.recorded import Numbers, RecordedProducts, reduced
from fastscape.curvature.served import ServedProducts
from fastscape.evaluation.group import Distributed, Group, alone_in_training, ranks_of
from fastscape.evaluation.points import Array
from fastscape.objective.objective import Objective, checked_objective
from fastscape.runs.evaluations import Evaluations

Vectors = TypeVar("Vectors", Tensor, list[Tensor], dict[str, Tensor])


class SymmetricOperator:
    """A symmetric matrix ``[D, D]`` over the parameters of a model that is known by its products.

    ``A @ v`` takes ``[D]``, ``[D, K]``, a list of tensors of the parameters' shapes (or with a last dimension K), or a dict of
    them by name, and returns the same kind. Sums, differences and multiples of operators are operators.

    Attributes:
        layout: where each parameter lies in a flat vector.
        dtype, device: of the products.
    """

    layout: Layout
    dtype: torch.dtype
    device: torch.device

    def rows(self, rows: Tensor) -> Tensor:
        """Products ``[K, D]`` of contiguous rows ``[K, D]`` of the operator's dtype and device: what an operator defines."""
        raise NotImplementedError

    def session(self) -> AbstractContextManager[None]:
        """A block within which set-up that products share is done once."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        """(D, D)."""
        return self.layout.size, self.layout.size

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the flat vector."""
        return self.layout.names

    @property
    def layers(self) -> dict[str, slice]:
        """Range of each parameter in the flat vector, by name."""
        return self.layout.layers

    __array_priority__ = 1000  # numpy scalars leave the product to the operator

    def __matmul__(self, vectors: Vectors) -> Vectors:
        with torch.inference_mode(False):
            rows, several = self.layout.rows_of(vectors, self.dtype, self.device)
            return self.layout.like(self.rows(rows), vectors, several)  # type: ignore[return-value]

    def matvec(self, vector: Tensor) -> Tensor:
        """A v of ``[D]``."""
        if vector.ndim != 1:
            raise ValueError(f"vector must have one dimension, got shape {tuple(vector.shape)}; use matmat or @ for several")
        return self @ vector

    def matmat(self, block: Tensor) -> Tensor:
        """A V of ``[D, K]``, ``[D, K]``."""
        if block.ndim != 2:
            raise ValueError(
                f"block must have two dimensions [D, K], got shape {tuple(block.shape)}; use matvec or @ for one vector"
            )
        return self @ block

    def adjoint(self) -> SymmetricOperator:
        """The operator itself: it is symmetric."""
        return self

    @property
    def T(self) -> SymmetricOperator:  # noqa: N802 - the name that torch and NumPy have
        """The operator itself: it is symmetric."""
        return self

    def to_scipy(self, dtype: type[np.floating] | None = None) -> LinearOperator:
        """The operator for ``scipy.sparse.linalg`` (``eigsh``, ``svds``), in NumPy arrays of ``dtype`` (default: its own)."""
        kind = np.dtype(dtype or {torch.float32: np.float32, torch.float64: np.float64}[self.dtype])

        def product(block: Array) -> Array:
            columns = torch.from_numpy(np.ascontiguousarray(block, dtype=kind))
            found: Array = (self @ columns).cpu().numpy().astype(kind)
            return found

        def single(vector: Array) -> Array:
            return product(vector.reshape(-1))

        return LinearOperator(self.shape, matvec=single, rmatvec=single, matmat=product, rmatmat=product, dtype=kind)

    def __add__(self, other: SymmetricOperator) -> SymmetricOperator:
        if not isinstance(other, SymmetricOperator):
            return NotImplemented
        return Combination([(1.0, self), (1.0, other)])

    def __sub__(self, other: SymmetricOperator) -> SymmetricOperator:
        return self + (-1.0) * other if isinstance(other, SymmetricOperator) else NotImplemented

    def __radd__(self, other: int) -> SymmetricOperator:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # of sum()

    def __mul__(self, factor: float | Tensor) -> SymmetricOperator:
        scalar = isinstance(factor, Real) or (isinstance(factor, Tensor) and not factor.ndim and not factor.is_complex())
        return Combination([(float(factor), self)]) if scalar else NotImplemented

    def __truediv__(self, divisor: float | Tensor) -> SymmetricOperator:
        return self * (1.0 / divisor)

    __rmul__ = __mul__

    def __neg__(self) -> SymmetricOperator:
        return -1.0 * self


class Combination(SymmetricOperator):
    """A weighted sum of operators over the same parameters."""

    def __init__(self, terms: Sequence[tuple[float, SymmetricOperator]]) -> None:
        first = terms[0][1]
        for _, other in terms[1:]:
            if (other.layout.names, other.layout.shapes) != (first.layout.names, first.layout.shapes):
                raise ValueError(f"operators must act on the same parameters, got {first.names[:3]}... and {other.names[:3]}...")
            if (other.dtype, other.device) != (first.dtype, first.device):
                raise ValueError(
                    f"operators must have one dtype and device, got {first.dtype} on {first.device} and {other.dtype} on "
                    f"{other.device}"
                )
        self.terms = tuple(terms)
        self.layout, self.dtype, self.device = first.layout, first.dtype, first.device

    def rows(self, rows: Tensor) -> Tensor:
        """See :class:`SymmetricOperator`."""
        total = torch.zeros_like(rows)
        for factor, operator in self.terms:
            total.add_(operator.rows(rows), alpha=factor)
        return total

    @contextmanager
    def session(self) -> Iterator[None]:
        """See :class:`SymmetricOperator`."""
        with self.terms[0][1].session():
            yield


class CurvatureOperator(SymmetricOperator):
    """The Hessian or Gauss-Newton matrix of an objective; made by :func:`hessian` and :func:`ggn`, which describe it.

    Attributes:
        matrix: ``"hessian"`` or ``"ggn"``.
        objective: the loss.
        dtype: of the products: the objective's, float32 for half precision; float64 once a use finds that they overflow.
    """

    @renamed(METHOD)
    def __init__(
        self,
        objective: Objective,
        matrix: Matrix,
        *,
        method: PathName | None = None,
        memory: int | None = None,
        compile: bool = False,
        ranks: Group | None = None,
    ) -> None:
        self.objective, self.matrix, self._memory = checked_objective(objective), matrix, memory
        check_memory(memory)
        chosen = checked_path(method)
        self._products: Products | RecordedProducts
        if ranks is None:
            self._products = Products(objective, matrix, chosen, memory, compile_=compile)
        else:
            self._products = ranks.agreed(lambda: ServedProducts(objective, matrix, chosen, memory, ranks))
        self.layout = Layout(objective.names, [tensor.shape for tensor in objective.base.values()])
        self.dtype, self.device = self._products.space.dtype, objective.device
        self._last: ProductChoice | None = None

    @property
    def served(self) -> ServedProducts | None:
        """The products, where several processes make them."""
        made = self._products.inner if isinstance(self._products, RecordedProducts) else self._products
        return made if isinstance(made, ServedProducts) else None

    def recorded(self, evaluations: Evaluations) -> Self:
        """The operator itself, whose products and their path are from now on taken from a journal where they are there."""
        if evaluations.journal is not None and isinstance(self._products, Products):
            self._products = RecordedProducts(self._products, evaluations, self._memory)
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the products: another arithmetic than the model's, a gradient that is not the loss's."""
        return self._products.space.notes

    def note(self, words: str) -> None:
        """Add a remark on the products."""
        self._products.space.note(words)

    def __repr__(self) -> str:
        method = f", method {self.choice.name!r}" if self.choice else ""
        return f"<CurvatureOperator {self.matrix} {self.shape[0]} x {self.shape[1]}, {str(self.dtype)[6:]}{method}>"

    def rows(self, rows: Tensor) -> Tensor:
        """See :class:`SymmetricOperator`."""
        if not len(rows):
            return torch.empty_like(rows)
        found = self._products.multiply(rows)
        self._prepared(len(rows))
        return found

    def forms(self, block: Tensor) -> tuple[Tensor, Array]:
        """H V of ``[D, K]``, and v'H_b v with the matrix of every batch, float64 ``[batches, K]``, from the same products."""
        with torch.inference_mode(False):
            rows, _ = self.layout.rows_of(block, self.dtype, self.device)
            found, forms = self._products.forms(rows, keep=True)
        assert found is not None
        self._prepared(len(rows))
        return found.T, forms

    def reduced(self, block: Tensor, numbers: Numbers, request: Sequence[Any] = (), *, batches: bool = True) -> dict[str, Array]:
        """What ``numbers`` makes of H V of ``[D, K]`` and the forms of every batch (zero for one): all that a journal keeps.

        ``request``: tensors, arrays and JSON data that it depends on beside them; ``batches``: whether on those forms.
        """
        with torch.inference_mode(False):
            rows, _ = self.layout.rows_of(block, self.dtype, self.device)
            found = reduced(self._products, rows, batches and len(self.batch_weights) > 1, numbers, request)
        self._prepared(len(rows))
        return found

    def quadratic_forms(self, block: Tensor) -> Array:
        """V'H v of the columns of ``[D, K]``, float64 ``[K]``, without keeping a product."""
        with torch.inference_mode(False):
            rows, _ = self.layout.rows_of(block, self.dtype, self.device)
            forms = self._products.forms(rows, keep=False)[1]
        self._prepared(len(rows))
        return np.average(forms, axis=0, weights=self.batch_weights)

    def session(self) -> AbstractContextManager[None]:
        """A block within which the arithmetic is set once, which saves 0.15 ms a product."""
        return self._products.space.arithmetic()

    def prepare(self, count: int, *, thorough: bool = False) -> ProductChoice:
        """Choose how to multiply blocks of ``count`` vectors, by measuring; otherwise this happens on first use.

        Args:
            count: vectors.
            thorough: also try what takes 20 to 500 gradients to set up: worth it for thousands of products.
        """
        return self._prepared(integer("count", count, 1), thorough=thorough)

    def _prepared(self, count: int, *, thorough: bool = False) -> ProductChoice:
        self._last, self.dtype = self._products.prepare(count, thorough=thorough), self._products.space.dtype
        return self._last

    @property
    def choice(self) -> ProductChoice | None:
        """How the last products were computed, or will be after :meth:`prepare`; ``None`` before."""
        return self._last

    @property
    def preferred_block(self) -> int:
        """Vectors per call with the least time per vector, of 1 and 8: both are measured."""
        single, block = self._products.prepare(1), self._products.prepare(8)
        return 8 if block.gradients < 0.9 * single.gradients else 1

    @property
    def batch_weights(self) -> tuple[float, ...]:
        """Weight n_b of each batch in the loss."""
        return self.objective.batch_weights

    @property
    def products(self) -> int:
        """Vectors multiplied so far, trials of paths included."""
        return self._products.products

    @property
    def nan_products(self) -> int:
        """Of them, those whose product holds NaN or inf."""
        return self._products.nan_products

    @property
    def gradient_seconds(self) -> float:
        """Seconds of one gradient of the largest batch; NaN before the first product."""
        return self._products.space.gradient_seconds

    def release(self) -> None:
        """Free the graphs that are kept; the next product builds them again."""
        self._products.release()


@renamed(METHOD)
def hessian(
    objective: Objective,
    *,
    method: PathName | None = None,
    memory: int | None = None,
    compile: bool = False,
    distributed: Distributed = None,
) -> CurvatureOperator:
    r"""The Hessian of an objective at its present weights, as an operator.

    .. math:: H = \sum_b \frac{n_b}{\sum n_b}\, \nabla^2 L_b(w)

    sample-weighted over the batches, so that it is exact for ragged ones. The fastest way to multiply is found by trying, once
    for single vectors and once for blocks: backward through a kept graph of the gradient (``"graph"``, ``"graph, batched"``).
    With ``H.prepare(K, thorough=True)``, or after long use of a small model, also forward over reverse (``"forward"``), the
    linearised gradient replayed (``"replay"``) and convolutions in channels-last (``"channels-last"``). Where no graph can be
    kept it is forward over reverse or fresh reverse over reverse (``"reverse"``), and where an operation has no second
    derivative or nothing else fits in memory, differences of gradients (``"gradient difference"``), with the error in
    ``H.choice.error``.

    Products are checked on first use: u'Hv = v'Hu, the same product twice, every path against the first, a model with
    custom ``autograd.Function`` against a difference of gradients, and v'Hv against losses nearby, which tell where torch
    differentiates an operation wrongly (a norm at zero). What fails is refused, with the reason in ``H.choice.refused``. An
    autocast inside the model is left out, by products in float64: its rounding has no derivatives. ``H.notes`` says so.

    Args:
        objective: the loss L; D parameters.
        method: one of these names, or ``None`` to try them.
        memory: bytes that a call may take beside the vectors it is given: private copy, checks and trials, graphs that are kept,
            and the products it returns; default half of what is available. Blocks are cut to fit, and batches where the loss
            allows; paths that do not fit are refused.
        compile: also try the kept graph traced and compiled by inductor, which takes from half a minute to many, and repays it
            after tens of thousands of products of small networks; taken only where its products are those of the others.
        distributed: whether the processes of torch.distributed share the batches: ``True``, a process group, ``False``, or
            ``None`` for the default group under torchrun, outside training. Then all make the same calls of the operator, and
            each gets rank 0's products: the same bits, for any number of processes, by ``"graph"`` unless ``method`` says
            another.
            To work with it on rank 0 alone see :func:`serve`.

    Returns:
        A :class:`CurvatureOperator`: ``H @ v`` for ``[D]``, ``[D, K]``, lists and dicts of tensors, ``H.to_scipy()``.
        Half-precision models are evaluated in float32. The weights are those at the call.

    Raises:
        ValueError: bad arguments, or a path that cannot run the model (names the operation without a second derivative).
        NondeterministicLossError, AsymmetricProductError: on the first product, where two of the same differ, or u'Hv and v'Hu.
        RankError: on all processes, where one has failed.

    Cost: on first use 10 to 30 gradients to choose; then 1 to 3 gradients a product. One copy of the parameters.

    Source: Pearlmutter, "Fast exact multiplication by the Hessian" (1994); Griewank & Walther, "Evaluating derivatives" (2008).

    Example:
        >>> import torch, fastscape as fs
        >>> objective = fs.Objective(torch.nn.Linear(4, 3), [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> H = fs.hessian(objective)
        >>> (H @ torch.ones(15, 2)).shape
        torch.Size([15, 2])
    """
    return _operator(objective, "hessian", method, memory, distributed, compile_=compile)


@renamed(METHOD)
def ggn(
    objective: Objective, *, method: PathName | None = None, memory: int | None = None, distributed: Distributed = None
) -> CurvatureOperator:
    r"""The generalised Gauss-Newton matrix of an objective at its present weights, as an operator.

    .. math:: G = \sum_b \frac{n_b}{\sum n_b}\, J_b^\top \nabla_z^2 \ell_b\, J_b

    with J_b the Jacobian of the outputs z of batch b and l_b its criterion: positive semidefinite for convex criteria, and for
    cross-entropy the Fisher matrix. The loss's Hessian is in closed form for cross-entropy, diag p - p p', never materialised.

    Args:
        objective: a loss with ``criterion=``; a ``loss=`` cannot be split into outputs and loss.
        method: ``"graph"``, ``"graph, batched"``, ``"forward"``, ``"replay"``, or ``None`` to try them.
        memory, distributed: as for :func:`hessian`.

    Returns:
        A :class:`CurvatureOperator`.

    Raises:
        ValueError: bad arguments, ``loss=``, or outputs that are not one tensor.

    Cost: as :func:`hessian`; a product takes about 4/3 gradients' operations.

    Source: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent" (2002).
    """
    return _operator(objective, "ggn", method, memory, distributed)


def _operator(
    objective: Objective,
    matrix: Matrix,
    method: PathName | None,
    memory: int | None,
    distributed: Distributed,
    *,
    compile_: bool = False,
) -> CurvatureOperator:
    ranks = ranks_of(distributed, checked_objective(objective))

    def checked() -> None:
        check_memory(memory)
        checked_path(method)
        if flag("compile", compile_) and ranks is not None:
            raise ValueError("compile must be False on several processes, got True; pass distributed=False")
        if matrix == "ggn":
            _check_ggn(objective, method)

    if ranks is None:
        checked()
    else:
        ranks.agreed(checked)
        ranks.check_same(objective)
    found = CurvatureOperator(objective, matrix, method=method, memory=memory, compile=compile_, ranks=ranks)
    found.note(alone_in_training(distributed, objective))
    return found


def _check_ggn(objective: Objective, method: PathName | None) -> None:
    if objective.criterion is None:
        raise ValueError(
            "objective must have criterion= for the Gauss-Newton matrix, which splits the loss at the model's outputs; got "
            "loss=: use fs.hessian"
        )
    if isinstance(method, str) and method in ("reverse", "gradient difference", "channels-last"):
        raise ValueError(
            f"method must be 'graph', 'graph, batched', 'forward', 'replay' or None for the Gauss-Newton matrix, got {method!r}"
        )
