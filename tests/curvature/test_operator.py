"""Operators behave as matrices: what ``@`` takes, algebra, SciPy, and that nothing is disturbed."""

import numpy as np
import pytest
import torch
from curvature_dense import dense_hessian, identity, objective, relative
from scipy.sparse.linalg import aslinearoperator, eigsh, svds
from torch import nn
from torch.nn import functional as F

import fastscape as fs


@pytest.fixture
def operator(net, pairs):
    return fs.hessian(objective(net, pairs))


@pytest.fixture
def truth(net, pairs):
    return dense_hessian(net, lambda call: F.cross_entropy(call(pairs[0]), pairs[1]))


def test_vectors_blocks_lists_and_dicts_give_the_same_products(net, operator, truth):
    block = torch.randn(66, 3, dtype=torch.float64)
    expected = truth @ block
    names = [name for name, _ in net.named_parameters()]
    shapes = [tensor.shape for tensor in net.parameters()]
    parts = [part.reshape(*shape, 3) for part, shape in zip(block.split([s.numel() for s in shapes]), shapes, strict=True)]
    assert relative(operator @ block, expected) < 1e-12
    assert relative(operator.matmat(block), expected) < 1e-12
    for found in (operator @ parts, list((operator @ dict(zip(names, parts, strict=True))).values())):
        assert [part.shape for part in found] == [(*shape, 3) for shape in shapes]
        assert relative(torch.cat([part.reshape(-1, 3) for part in found]), expected) < 1e-12
    single = [part[..., 0] for part in parts]
    assert relative(operator.matvec(block[:, 0]), expected[:, 0]) < 1e-12
    found = operator @ dict(zip(names, single, strict=True))
    assert list(found) == names
    assert relative(torch.cat([part.flatten() for part in found.values()]), expected[:, 0]) < 1e-12


def test_the_layout_names_rows_of_the_matrix(operator):
    assert operator.shape == (66, 66)
    assert operator.layers == {
        "0.weight": slice(0, 35),
        "0.bias": slice(35, 42),
        "2.weight": slice(42, 63),
        "2.bias": slice(63, 66),
    }
    assert operator.adjoint() is operator.T is operator
    assert (operator.dtype, operator.device) == (torch.float64, torch.device("cpu"))


def test_sums_differences_and_multiples_are_operators(net, pairs, operator, truth):
    other = fs.ggn(objective(net, pairs))
    gauss = other @ identity(other)
    combined = 2 * operator - other * 0.5 + (-operator)
    assert relative(combined @ identity(operator), truth - 0.5 * gauss) < 1e-12
    assert combined.shape == (66, 66)
    vector = combined @ [tensor.detach() for tensor in net.parameters()]
    assert [part.shape for part in vector] == [tensor.shape for tensor in net.parameters()]


def test_operators_of_other_parameters_cannot_be_added(net, pairs, operator):
    with pytest.raises(ValueError, match="same parameters"):
        operator + fs.hessian(objective(net, pairs, params="2.*"))
    with pytest.raises(ValueError, match="dtype"):
        operator + fs.hessian(objective(net, pairs, dtype=torch.float32, params="*"))
    with pytest.raises(TypeError):
        operator + 3
    with pytest.raises(TypeError):
        operator * operator


def test_scipys_solvers_run_on_the_operator(operator, truth):
    expected = torch.linalg.eigvalsh(truth).numpy()
    top = eigsh(operator.to_scipy(), 3, which="LA", return_eigenvectors=False)
    assert np.allclose(np.sort(top), expected[-3:], rtol=1e-6)
    bottom = eigsh(operator.to_scipy(), 2, which="SA", return_eigenvectors=False)
    assert np.allclose(np.sort(bottom), expected[:2], rtol=1e-6)
    singular = svds(operator.to_scipy(), 2, return_singular_vectors=False)
    assert np.allclose(np.sort(singular), np.sort(np.abs(expected))[-2:], rtol=1e-6)


def test_the_scipy_operator_has_the_dtype_asked_for(operator, truth):
    linear = aslinearoperator(operator.to_scipy(np.float32))
    assert linear.dtype == np.float32
    assert np.allclose(linear @ np.eye(66, dtype=np.float32), truth.numpy(), atol=1e-6)
    assert np.allclose(linear.H @ np.eye(66, dtype=np.float32)[:, :2], truth.numpy()[:, :2], atol=1e-6)


def test_an_empty_block_has_an_empty_product(operator):
    assert (operator @ torch.empty(66, 0, dtype=torch.float64)).shape == (66, 0)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.ones(65), r"must have the shape \[66\] or \[66, K\], got \(65,\)"),
        (torch.ones(2, 66), r"got \(2, 66\)"),
        (torch.ones(66, dtype=torch.complex64), "must be real"),
        ([torch.ones(3)], "one tensor for each of 4 parameters"),
        ({"0.weight": torch.ones(7, 5)}, "missing"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(operator, vector, message):
    with pytest.raises(ValueError, match=message):
        operator @ vector


def test_other_kinds_of_vectors_are_refused(operator):
    with pytest.raises(TypeError, match="got str"):
        operator @ "ones"
    with pytest.raises(ValueError, match="one dimension"):
        operator.matvec(torch.ones(66, 1))
    with pytest.raises(ValueError, match="two dimensions"):
        operator.matmat(torch.ones(66))
    parts = [torch.ones(7, 5), torch.ones(7, 2), torch.ones(3, 7), torch.ones(3)]
    with pytest.raises(ValueError, match=r"at '0\.(weight|bias)'"):
        operator @ parts


def test_integer_and_float32_vectors_are_converted(operator, truth):
    assert relative(operator @ torch.ones(66, dtype=torch.int64), truth.sum(1)) < 1e-12
    assert relative(operator @ torch.ones(66), truth.sum(1)) < 1e-12


@pytest.mark.parametrize("make", [fs.hessian, fs.ggn])
def test_the_model_and_the_process_are_untouched(untouched, bn_net, digits, make):
    batch = digits[0][0][:20], digits[0][1][:20]
    for mode in ("running", "batch"):
        made = objective(bn_net, batch, batch_norm=mode)
        with untouched(bn_net):
            operator = make(made)
            operator @ torch.ones(made.size, 3)
            operator @ torch.ones(made.size)
            operator.prepare(8, thorough=True)


def test_an_interrupted_product_leaves_no_trace(untouched, net, pairs):
    made = objective(net, pairs)
    operator = fs.hessian(made)
    operator @ torch.ones(66)
    calls = []

    def interrupt(*_):
        calls.append(1)
        raise KeyboardInterrupt

    operator._products.space.program.replica.module.model.register_forward_hook(interrupt)
    operator.release()
    with untouched(net), pytest.raises(KeyboardInterrupt):
        operator @ torch.ones(66)
    assert calls


def test_products_are_counted_and_so_are_those_with_nan(net, pairs):
    operator = fs.hessian(objective(net, pairs))
    operator.prepare(2)
    before = operator.products
    block = torch.ones(66, 3, dtype=torch.float64)
    block[5, 1] = torch.nan
    found = operator @ block
    assert operator.products - before == 3 + (operator.products - before - 3)
    assert operator.nan_products == 1
    assert found[:, 0].isfinite().all()
    assert not found[:, 1].isfinite().all()


def test_nan_weights_give_products_without_numbers_and_no_error(net, pairs):
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    operator = fs.hessian(objective(net, pairs))
    found = operator @ torch.ones(66)
    assert found.isnan().any()
    assert operator.nan_products == 1


def test_curvlinops_agrees(net, pairs, operator):
    curvlinops = pytest.importorskip("curvlinops")
    parameters = list(net.parameters())
    other = curvlinops.HessianLinearOperator(net, nn.CrossEntropyLoss(), parameters, [pairs], check_deterministic=False)
    block = torch.randn(66, 4, dtype=torch.float64)
    assert relative(operator @ block, other @ block) < 1e-6
    gauss = curvlinops.GGNLinearOperator(net, nn.CrossEntropyLoss(), parameters, [pairs], check_deterministic=False)
    assert relative(fs.ggn(objective(net, pairs)) @ block, gauss @ block) < 1e-6


def test_operators_can_be_divided_and_summed(operator, truth):
    assert relative((operator / 2) @ identity(operator), truth / 2) < 1e-12
    assert relative(sum([operator, operator]) @ identity(operator), 2 * truth) < 1e-12
    assert relative((operator * torch.tensor(2.0)) @ identity(operator), 2 * truth) < 1e-12


def test_products_in_inference_mode(operator, truth):
    with torch.inference_mode():
        found = operator @ torch.eye(66, dtype=torch.float64)
        single = operator @ torch.ones(66, dtype=torch.float64)
    assert relative(found.clone(), truth) < 1e-12
    assert relative(single.clone(), truth.sum(1)) < 1e-12


def test_complex_parts_of_a_list_are_refused(net, operator):
    parts = [tensor.detach().to(torch.complex128) for tensor in net.parameters()]
    with pytest.raises(ValueError, match="must be real"):
        operator @ parts
