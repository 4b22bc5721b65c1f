// What the C entry points (library.cpp) and the kernels compiled per instruction set (kernels.inc) agree on.
#pragma once
#include <cstdint>

namespace fastscape {

constexpr int ABI = 4;  // raise with any change of this file; fastscape/ops/_native.py names the number it was written for

enum Type : int8_t { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2, FLOAT16 = 3 };
enum Distribution : int32_t { GAUSSIAN = 0, RADEMACHER = 1 };

constexpr int64_t BLOCK = 2048;       // elements generated at a time: 8 KiB of noise stays in the L1 cache
constexpr int64_t LANES = 1024;       // partial sums of a reduction; lane l adds the elements l, l + LANES, ... in order
constexpr int64_t SUM_BLOCK = 16384;  // elements per block of a reduction

// A piece of one tensor: elements first .. first + count - 1 of the parameter with this id.
struct Segments {
  int64_t size;
  const void *const *weights;  // [size], or null: see the tasks
  const void *const *raw;      // [size] stored directions (float32, or the type of a float64 result), or null: regenerate
  const int64_t *counts;
  const int64_t *firsts;
  const uint32_t *ids;
  const int8_t *types;         // of the weights
};

struct Noise {
  uint64_t seed;
  uint32_t stream;
  int32_t distribution;
};

// out[(k R + r) size + t] = weights[t] + (radii[r] scales[k size + t]) z_k,t, in the type out_type; without weights the outputs
// are z itself in float32 (R = 1)
struct PerturbTask {
  Segments segments;
  Noise noise;
  int64_t directions;           // K
  const uint32_t *indices;      // [K]
  const double *scales;         // [K, size]
  int64_t radii_count;          // R
  const double *radii;          // [R]
  void *const *outputs;         // [K, R, size]
  int8_t out_type;
  bool raw_float64;
  bool streaming;               // write around the caches
  const int64_t *block_ends;    // [size] cumulative numbers of blocks of BLOCK elements
};

// sums[k size + t] = sum_e v_t[e] z_k,t[e] with v = weights, or z itself where weights is null; raw directions are float32
struct DotTask {
  Segments segments;
  Noise noise;
  int64_t directions;
  const uint32_t *indices;
  double *partial;              // [K, blocks] scratch: sums of the blocks of SUM_BLOCK elements
  double *sums;                 // [K, size]
  const int64_t *block_ends;    // [size]
};

constexpr int64_t ROW_ELEMENTS = 4096;  // of a block of rows: what is shared by all lanes stays in the L1 cache
constexpr int64_t ROW_COUNT = 256;

// Rows of a block: at least eight blocks for the threads to share.
__attribute__((always_inline)) inline int64_t rows_of_block(int64_t rows, int64_t length) {
  int64_t size = ROW_ELEMENTS / length;
  size = size < ROW_COUNT ? size : ROW_COUNT;
  size = size < (rows + 7) / 8 ? size : (rows + 7) / 8;
  return size > 0 ? size : 1;
}

// An op on rows in difference lanes: out[k, 0 and 1, s, row] from lanes[k, a and b, s, row]
struct RowTask {
  const void *x;                // [rows, length]
  const void *lanes;            // [directions, 1 or 2, lane_radii, rows, length]
  void *out;                    // [directions, 2, radii_count, rows, length], or without length
  void *scratch;                // [rows, length] of the lanes' type, where length exceeds ROW_ELEMENTS; else null
  const double *radii;
  int64_t directions, lane_radii, radii_count, rows, length;
  const void *weight;           // layer norm, each of the lanes' type or null: [length]
  const void *weight_direction; // [directions, length]
  const void *bias_direction;   // [directions, length]
  double eps;
  const int64_t *target;        // cross-entropy: [rows]
  int8_t x_type, lane_type;
  bool second;                  // the lanes hold b
  bool centred;
};

// Max-pooling of planes in difference lanes
struct PoolTask {
  const void *x;                // [planes, height, width]
  const void *lanes;            // [directions, 1 or 2, lane_radii, planes, height, width]
  void *out;                    // [directions, 2, radii_count, planes, output]
  const double *radii;
  int64_t directions, lane_radii, radii_count, planes, height, width;
  int64_t kernel[2], stride[2], padding[2], dilation[2], output[2];
  int8_t x_type, lane_type;
  bool second;
};

constexpr int64_t TILE_BYTES = 128;  // 128 units with weights and slopes take 32 KiB

// y = relu(x(t)) W(t) + b(t) at every point t, and relu(y) V(t) + c(t) where there is a second map; what moves is given by its
// values at 0 and its slopes, in front of all other axes
struct ReluLineTask {
  const void *inputs;           // [2, rows, units]
  const void *weight, *bias;    // [2, units, outputs], [2, outputs]
  const void *head, *head_bias; // [2, outputs, classes], [2, classes], or null
  const void *points;           // [points_count], ascending
  void *out;                    // [points_count, rows, outputs or classes]
  void *tiles, *head_tiles;     // scratch for the weights: [tiles, units, 2, TILE_BYTES], zeros behind the last output; or null
  int64_t rows, units, outputs, classes, points_count;
  int8_t type;                  // of everything
};

constexpr int64_t SUM_SLICE = 1024;  // integers of a sum: 16 KiB of two limbs stay in the L1 cache while terms pass

// partial[(b rows + k) blocks + block] = largest magnitude in a block of SUM_BLOCK elements of a part of row k of term b, and
// largest[(b rows + k) parts + t] that of the part; inf where an element is not finite
struct LargestTask {
  const void *const *terms;     // [terms_count], each [rows, ends[parts - 1]]
  const int64_t *strides;       // [terms_count] of their rows
  int64_t terms_count, rows, parts;
  const int64_t *ends;          // [parts] of the columns
  const int64_t *block_ends;    // [parts] cumulative numbers of blocks
  double *partial, *largest;
  int8_t type;
};

// out[limb, k, c] = sum over terms of the integers nearest to weights[b] terms[b][k, first + c] in units of 2^units[limb, k, t],
// the second limb of what the first rounding leaves
struct FixedSumTask {
  const void *const *terms;
  const int64_t *strides;
  int64_t terms_count, rows, parts, limbs, first, length;
  const int64_t *ends;
  const double *weights;        // [terms_count]
  const int64_t *units;         // [limbs, rows, parts]
  int64_t *out;                 // [limbs, rows, length]
  int8_t type;
};

// out[k, c] = sum over limbs of total[limb, k, c] 2^units[limb, k, t]
struct FixedValueTask {
  const int64_t *total;         // [limbs, rows, length]
  int64_t rows, parts, limbs, first, length;
  const int64_t *ends;
  const int64_t *units;
  void *out;
  int8_t type;
};

struct Kernels {
  void (*perturb)(const PerturbTask &, int64_t begin, int64_t end);  // blocks of BLOCK elements
  void (*dot)(const DotTask &, int64_t begin, int64_t end);          // blocks of SUM_BLOCK elements
  void (*gram)(const struct GramTask &, int64_t begin, int64_t end);      // blocks of SUM_BLOCK elements
  void (*update)(const struct UpdateTask &, int64_t begin, int64_t end);
  void (*pointwise)(const struct PointwiseTask &, int64_t begin, int64_t end);  // LaneTask::work_items
  void (*affine)(const struct AffineTask &, int64_t begin, int64_t end);
  void (*softmax_difference)(const RowTask &, int64_t begin, int64_t end);  // blocks of rows_of_block rows
  void (*layer_norm_difference)(const RowTask &, int64_t begin, int64_t end);
  void (*cross_entropy_difference)(const RowTask &, int64_t begin, int64_t end);
  void (*max_pool_difference)(const PoolTask &, int64_t begin, int64_t end);  // planes
  void (*relu_line)(const ReluLineTask &, int64_t begin, int64_t end);        // eights of rows
  void (*largest)(const LargestTask &, int64_t begin, int64_t end);           // blocks of every row of every term
  void (*fixed_sum)(const FixedSumTask &, int64_t begin, int64_t end);        // slices of SUM_SLICE columns of every row
  void (*fixed_value)(const FixedValueTask &, int64_t begin, int64_t end);
};

// partial[block, i, j] = sum over one block of SUM_BLOCK elements of left[i] right[j], in float64
struct GramTask {
  const void *left, *right;
  int64_t left_rows, right_rows, left_stride, right_stride, length;
  int8_t type;
  double *partial;
};

// out[j] = right[j] - sum_i coefficients[i, j] left[i]; squares[block, j] = the block's sum of out[j]^2
struct UpdateTask {
  const void *left, *right;
  void *out;
  int64_t left_rows, right_rows, left_stride, right_stride, length;
  int8_t type;
  const double *coefficients;  // [left_rows, right_rows]
  double *squares;
};

constexpr int64_t PIECE_OF_X = 1024;  // elements of x whose coefficients stay in the cache while lanes pass
constexpr int64_t LANE_GROUP = 32;    // lanes per work item

// First and second differences [K, parts, lane_radii, size] to be mapped to [K, 2, S, size]; parts is 1 where b is zero,
// lane_radii is 1 where the lanes are the same for all radii
struct LaneTask {
  const void *x;        // [size]
  const void *lanes;
  void *out;
  const double *radii;  // [S]
  int64_t size, directions, radii_count, parts, lane_radii;
  int8_t base_type, lane_type;  // FLOAT32 or FLOAT64

  int64_t work_items() const {
    return (size + PIECE_OF_X - 1) / PIECE_OF_X * ((directions * radii_count + LANE_GROUP - 1) / LANE_GROUP);
  }
  int64_t grain() const {  // work items of some 32768 elements in all
    const int64_t lanes = directions * radii_count;
    return lanes > 0 && lanes < LANE_GROUP ? LANE_GROUP / lanes : 1;
  }
};

enum PointwiseKind : int32_t {  // in alphabetical order, as in fastscape/ops/pointwise_difference
  ABS, CLAMP, ELU, EXP, GELU, GELU_TANH, HARDSIGMOID, HARDSWISH, LEAKY_RELU, MISH, RELU, SIGMOID, SILU, SOFTPLUS, TANH
};

struct PointwiseTask {
  LaneTask lanes;
  int32_t kind;
  double options[3];
};

// x is [N, channels, inner]; scale [channels] and the directions [K, channels] (or null) are in the lanes' type
struct AffineTask {
  LaneTask lanes;
  int64_t channels, inner;
  const void *scale, *scale_direction, *shift_direction;
};

}  // namespace fastscape
