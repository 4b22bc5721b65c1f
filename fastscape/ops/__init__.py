"""Kernels below the evaluation engine: each op is one schema with a pure-PyTorch reference and at most one kernel per device.

The ops know no model. They take lists of tensors or flat buffers and cover all directions and parameters they can per call.
:func:`status` tells which implementation answers where. Adding one takes five steps: see the README.
"""

from fastscape.ops._status import Status, status
from fastscape.ops.affine_difference import affine_difference
from fastscape.ops.block_gram import block_gram
from fastscape.ops.block_update import block_update
from fastscape.ops.cross_entropy_difference import cross_entropy_difference
from fastscape.ops.direction import Generation, direction
from fastscape.ops.direction.reference import Distribution, tensor_ids
from fastscape.ops.direction_dot import direction_dot
from fastscape.ops.direction_norms import Norms, StoredNorms, direction_norms
from fastscape.ops.fixed_point import fixed_point_sum, fixed_point_value, row_largest
from fastscape.ops.layer_norm_difference import layer_norm_difference
from fastscape.ops.linear_difference import linear_difference
from fastscape.ops.max_pool2d_difference import max_pool2d_difference
from fastscape.ops.perturb import perturb
from fastscape.ops.perturb.prepared import Perturbation
from fastscape.ops.perturbed_linear import perturbed_linear
from fastscape.ops.pointwise_difference import pointwise_difference
from fastscape.ops.relu_line import relu_line
from fastscape.ops.softmax_difference import softmax_difference

__all__ = [
    "Distribution",
    "Generation",
    "Norms",
    "Perturbation",
    "Status",
    "StoredNorms",
    "affine_difference",
    "block_gram",
    "block_update",
    "cross_entropy_difference",
    "direction",
    "direction_dot",
    "direction_norms",
    "fixed_point_sum",
    "fixed_point_value",
    "layer_norm_difference",
    "linear_difference",
    "max_pool2d_difference",
    "perturb",
    "perturbed_linear",
    "pointwise_difference",
    "relu_line",
    "row_largest",
    "softmax_difference",
    "status",
    "tensor_ids",
]
