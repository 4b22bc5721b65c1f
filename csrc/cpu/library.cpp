// The C entry points of fastscape's native library: plain C ABI, no torch or Python headers. Loops run in torch's own thread pool
// through `torch_parallel_for` (libtorch_cpu, torch >= 2.10), passed in as a pointer; work is cut in blocks of fixed size, so the
// results do not depend on the number of threads.
#include "api.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fastscape {
namespace baseline { extern const Kernels kernels; }
#if defined(FS_X86)
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
#endif

namespace {

enum Isa { BASELINE = 0, AVX2 = 1, AVX512 = 2 };

int best_isa() {
#if defined(FS_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // every AVX2 chip has F16C
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return AVX512;
  if (avx2) return AVX2;
#endif
  return BASELINE;
}

int &current_isa() {
  static int isa = best_isa();
  return isa;
}

const Kernels &kernels() {
#if defined(FS_X86)
  if (current_isa() == AVX512) return avx512::kernels;
  if (current_isa() == AVX2) return avx2::kernels;
#endif
  return baseline::kernels;
}

typedef void (*Range)(int64_t begin, int64_t end, void *context);
typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, Range function, void *context);

constexpr int64_t GRAIN = 16;  // blocks of 2048 elements: torch's own grain of 32768

template <class Task> struct Job {
  const Task &task;
  void (*kernel)(const Task &, int64_t, int64_t);
};

template <class Task> void run_range(int64_t begin, int64_t end, void *context) {
  const Job<Task> &job = *(const Job<Task> *)context;
  job.kernel(job.task, begin, end);
}

// Returns torch's error code (0: no error).
template <class Task>
int parallel(ParallelFor for_, int64_t blocks, int64_t grain, const Task &task, void (*kernel)(const Task &, int64_t, int64_t)) {
  if (blocks <= 0) return 0;
  if (!for_ || blocks <= grain) {
    kernel(task, 0, blocks);
    return 0;
  }
  Job<Task> job = {task, kernel};
  return for_(0, blocks, grain, run_range<Task>, &job);
}

// Sum of `count` values, halving as if they were padded with zeros to a power of two.
double fold(double *values, int64_t count) {
  int64_t half = 1;
  while (2 * half < count) half *= 2;
  for (; half; half /= 2)
    for (int64_t i = 0; i < half && i + half < count; ++i) values[i] += values[i + half];
  return count ? values[0] : 0.0;
}

// Blocks that keep a thread busy: about as many lane elements as GRAIN blocks have.
int64_t grain_of(int64_t lanes, int64_t block_elements) {
  const int64_t elements = lanes * block_elements;
  return elements > 0 && elements < GRAIN * BLOCK ? GRAIN * BLOCK / elements : 1;
}

int row_blocks(ParallelFor for_, const RowTask &task, void (*kernel)(const RowTask &, int64_t, int64_t)) {
  const int64_t size = rows_of_block(task.rows, task.length);
  return parallel(for_, (task.rows + size - 1) / size, grain_of(task.directions * task.radii_count, size * task.length), task, kernel);
}

// Pieces of the rows of a weight and of its slope, side by side.
void tile_weights(const void *weight, int64_t units, int64_t row_bytes, void *tiles) {
  char *to = (char *)tiles;
  for (int64_t first = 0; tiles && first < row_bytes; first += TILE_BYTES)
    for (int64_t unit = 0; unit < units; ++unit)
      for (int64_t which = 0; which < 2; ++which, to += TILE_BYTES) {
        const int64_t width = row_bytes - first < TILE_BYTES ? row_bytes - first : TILE_BYTES;
        __builtin_memcpy(to, (const char *)weight + (which * units + unit) * row_bytes + first, width);
        __builtin_memset(to + width, 0, TILE_BYTES - width);
      }
}

}  // namespace
}  // namespace fastscape

using namespace fastscape;

EXPORT int fastscape_abi() { return ABI; }
EXPORT int fastscape_isa() { return current_isa(); }

// Choose an instruction set by hand (tests, benchmarks); one that the processor lacks is refused. Returns the one in force.
EXPORT int fastscape_set_isa(int isa) {
  if (isa >= BASELINE && isa <= best_isa()) current_isa() = isa;
  return current_isa();
}

EXPORT int fastscape_perturb(ParallelFor for_, const PerturbTask *task) {
  const int64_t blocks = task->segments.size ? task->block_ends[task->segments.size - 1] : 0;
  return parallel(for_, blocks, GRAIN, *task, kernels().perturb);
}

EXPORT int fastscape_dot(ParallelFor for_, const DotTask *task) {
  const int64_t size = task->segments.size, blocks = size ? task->block_ends[size - 1] : 0;
  const int error = parallel(for_, blocks, GRAIN * BLOCK / SUM_BLOCK, *task, kernels().dot);
  for (int64_t k = 0; k < task->directions; ++k)
    for (int64_t t = 0; t < size; ++t) {
      const int64_t begin = t ? task->block_ends[t - 1] : 0;
      task->sums[k * size + t] = fold(task->partial + k * blocks + begin, task->block_ends[t] - begin);
    }
  return error;
}

EXPORT int fastscape_gram(ParallelFor for_, const GramTask *task) {
  return parallel(for_, (task->length + SUM_BLOCK - 1) / SUM_BLOCK, 2, *task, kernels().gram);
}

EXPORT int fastscape_update(ParallelFor for_, const UpdateTask *task) {
  return parallel(for_, (task->length + SUM_BLOCK - 1) / SUM_BLOCK, 2, *task, kernels().update);
}

EXPORT int fastscape_pointwise(ParallelFor for_, const PointwiseTask *task) {
  return parallel(for_, task->lanes.work_items(), task->lanes.grain(), *task, kernels().pointwise);
}

EXPORT int fastscape_affine(ParallelFor for_, const AffineTask *task) {
  return parallel(for_, task->lanes.work_items(), task->lanes.grain(), *task, kernels().affine);
}

EXPORT int fastscape_softmax_difference(ParallelFor for_, const RowTask *task) {
  return row_blocks(for_, *task, kernels().softmax_difference);
}

EXPORT int fastscape_layer_norm_difference(ParallelFor for_, const RowTask *task) {
  return row_blocks(for_, *task, kernels().layer_norm_difference);
}

EXPORT int fastscape_cross_entropy_difference(ParallelFor for_, const RowTask *task) {
  return row_blocks(for_, *task, kernels().cross_entropy_difference);
}

EXPORT int fastscape_max_pool_difference(ParallelFor for_, const PoolTask *task) {
  const int64_t grain = grain_of(task->directions * task->radii_count, task->height * task->width);
  return parallel(for_, task->planes, grain, *task, kernels().max_pool_difference);
}

EXPORT int fastscape_relu_line(ParallelFor for_, const ReluLineTask *task) {
  const int64_t bytes = task->type == FLOAT64 ? 8 : 4;
  tile_weights(task->weight, task->units, task->outputs * bytes, task->tiles);
  tile_weights(task->head, task->outputs, task->classes * bytes, task->head_tiles);
  return parallel(for_, (task->rows + 7) / 8, grain_of(task->points_count, 8 * task->outputs), *task, kernels().relu_line);
}

EXPORT int fastscape_largest(ParallelFor for_, const LargestTask *task) {
  const int64_t blocks = task->parts ? task->block_ends[task->parts - 1] : 0, rows = task->terms_count * task->rows;
  const int error = parallel(for_, rows * blocks, GRAIN * BLOCK / SUM_BLOCK, *task, kernels().largest);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t t = 0; t < task->parts; ++t) {
      double most = 0.0;
      for (int64_t block = t ? task->block_ends[t - 1] : 0; block < task->block_ends[t]; ++block)
        most = task->partial[row * blocks + block] > most ? task->partial[row * blocks + block] : most;
      task->largest[row * task->parts + t] = most;
    }
  return error;
}

EXPORT int fastscape_fixed_sum(ParallelFor for_, const FixedSumTask *task) {
  const int64_t slices = task->rows * ((task->length + SUM_SLICE - 1) / SUM_SLICE);
  return parallel(for_, slices, grain_of(task->terms_count, SUM_SLICE), *task, kernels().fixed_sum);
}

EXPORT int fastscape_fixed_value(ParallelFor for_, const FixedValueTask *task) {
  const int64_t slices = task->rows * ((task->length + SUM_SLICE - 1) / SUM_SLICE);
  return parallel(for_, slices, GRAIN * BLOCK / SUM_SLICE, *task, kernels().fixed_value);
}
