// Weights plus scaled random directions, for CUDA devices where Triton is not installed. fastscape/ops/perturb/cuda.py compiles
// this file with NVRTC at the first call and defines
//   FS_WEIGHT, FS_OUT  float, double, BFloat16 or Half
//   FS_RADEMACHER      signs instead of normals
//   FS_GROUPED         tensors have several pieces with a scale each
//   FS_SHARDS          tensors are slices of whole parameters, which may begin inside a counter
//   FS_THREADS         threads of a block
//   FS_BLOCK           elements of a block: a multiple of 128, so that no counter serves two blocks
#include "../philox.h"

namespace fastscape {
namespace {

#define FS_DEVICE __device__ __forceinline__

struct BFloat16 { unsigned short bits; };
struct Half { unsigned short bits; };

template <class Out> struct Arithmetic { typedef float Type; };
template <> struct Arithmetic<double> { typedef double Type; };
typedef Arithmetic<FS_OUT>::Type Compute;

FS_DEVICE float widen(float value) { return value; }
FS_DEVICE double widen(double value) { return value; }
FS_DEVICE float widen(BFloat16 value) { return float_of((int32_t)((uint32_t)value.bits << 16)); }
FS_DEVICE float widen(Half value) {  // cuda_fp16.h needs an include path that a driver alone does not bring
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}

FS_DEVICE void narrow(float value, float &out) { out = value; }
FS_DEVICE void narrow(double value, double &out) { out = value; }
FS_DEVICE void narrow(float value, Half &out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value)); }
FS_DEVICE void narrow(float value, BFloat16 &out) {  // to nearest even by hand: the instruction's NaN is not torch's
  const uint32_t bits = (uint32_t)bits_of(value);
  out.bits = value != value ? 0x7FC0 : (unsigned short)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

FS_DEVICE float displaced(float w, float c, float z) { return add(mul(c, z), w); }
FS_DEVICE double displaced(double w, double c, double z) { return __dadd_rn(__dmul_rn(c, z), w); }

// Four elements, read and written by instructions of up to 16 bytes.
template <class V> struct alignas(sizeof(V) < 4 ? 8 : 16) Four { V at[4]; };

template <class V> FS_DEVICE bool aligned(const V *place) { return (uint64_t)place % alignof(Four<V>) == 0; }

template <class V> FS_DEVICE void load(const V *from, int absent, int present, Compute (&w)[4]) {
  if (absent == 0 && present == 4 && aligned(from)) {
    const Four<V> four = *(const Four<V> *)from;
    for (int i = 0; i < 4; ++i) w[i] = (Compute)widen(four.at[i]);
  } else {
    for (int i = 0; i < 4; ++i) w[i] = i >= absent && i < present ? (Compute)widen(from[i]) : (Compute)0;
  }
}

template <class V> FS_DEVICE void store(V *to, int absent, int present, const Four<V> &four) {
  if (absent == 0 && present == 4 && aligned(to)) {
    *(Four<V> *)to = four;
  } else {
    for (int i = 0; i < 4; ++i)
      if (i >= absent && i < present) to[i] = four.at[i];
  }
}

// A tensor's share of the launch.
struct Segment {
  int64_t end, start;  // its blocks
  int64_t count;       // elements
  int64_t length;      // of a piece
  int64_t column;      // of the scales: its first piece
  int64_t slot;        // in the lists of addresses and ids
  int64_t first;       // its first element in the whole parameter
};

FS_DEVICE Segment owner(const Segment *segments, int size, int64_t block) {
  int low = 0;
  for (int high = size - 1; low < high;) {
    const int middle = (low + high) / 2;
    if (segments[middle].end > block) high = middle;
    else low = middle + 1;
  }
  return segments[low];
}

}  // namespace

// A block of a tensor along one direction, at all radii: the noise is made once. Block = position * directions + direction.
// At least eight blocks on a multiprocessor: left alone, the compiler spills to fit more.
extern "C" __global__ void __launch_bounds__(FS_THREADS, 8) perturb(
    const Segment *__restrict__ segments,
    const int64_t *__restrict__ weights,  // addresses, by slot
    const int64_t *__restrict__ outputs,  // addresses, by slot: contiguous [directions, radii, count]
    const int64_t *__restrict__ ids,      // by slot
    const int64_t *__restrict__ indices,  // of the directions
    const double *__restrict__ scales,    // [directions, columns]
    const double *__restrict__ radii,
    int size,  // of segments
    int directions, int radii_count, int64_t columns, uint32_t k0, uint32_t k1) {
  const uint32_t k = blockIdx.x % directions;
  const int64_t block = blockIdx.x / directions;
  const Segment segment = owner(segments, size, block);
  const int64_t first = FS_SHARDS ? segment.first : 0;
  // of a slice, blocks begin at multiples of 128 in the whole parameter: the first one up to 127 elements before it
  const int64_t start = (block - segment.start) * FS_BLOCK - first % 128;
  const FS_WEIGHT *weight = (const FS_WEIGHT *)weights[segment.slot];
  FS_OUT *rows = (FS_OUT *)outputs[segment.slot] + (int64_t)k * radii_count * segment.count;
  __builtin_assume(__isGlobal(weight));  // an address out of a table may lead anywhere, and a generic access finds out each time
  __builtin_assume(__isGlobal(rows));
  const uint32_t id = (uint32_t)ids[segment.slot], direction = (uint32_t)indices[k];
  const double *scale = scales + k * columns + segment.column;

  int left = FS_BLOCK, width = FS_BLOCK;  // elements of the block's first piece in it, and of those after it
  if constexpr (FS_GROUPED) {
    const int64_t before = (FS_SHARDS ? max(start, (int64_t)0) : start) / segment.length;
    scale += before;
    left = (int)min((before + 1) * segment.length - start, (int64_t)FS_BLOCK);
    width = (int)min(segment.length, (int64_t)FS_BLOCK);
  }

  __shared__ uint32_t signs[FS_RADEMACHER ? FS_BLOCK / 32 : 1];
  if constexpr (FS_RADEMACHER) {
    for (int i = threadIdx.x; i < FS_BLOCK / 128; i += FS_THREADS) {
      const Words r = philox((uint32_t)((first + start) / 128) + i, direction, id, 0, k0, k1);
      signs[4 * i] = r.x;
      signs[4 * i + 1] = r.y;
      signs[4 * i + 2] = r.z;
      signs[4 * i + 3] = r.w;
    }
    __syncthreads();
  }

#pragma unroll 1
  for (int offset = 4 * threadIdx.x; offset < FS_BLOCK; offset += 4 * FS_THREADS) {
    const int64_t element = start + offset;
    if (element >= segment.count) break;
    if (FS_SHARDS && element <= -4) continue;
    const int absent = FS_SHARDS ? (int)max(-element, (int64_t)0) : 0;  // elements before the slice
    const int present = (int)min(segment.count - element, (int64_t)4);
    Compute w[4], z[4];
    load(weight + element, absent, present, w);
    if constexpr (FS_RADEMACHER) {
      const uint32_t word = signs[offset / 32];
      for (int i = 0; i < 4; ++i) z[i] = (Compute)sign_of({word, word, word, word}, offset + i);
    } else {
      const Normals n = normals((uint32_t)((first + element) / 4), direction, id, 0, k0, k1);
      z[0] = (Compute)n.x;
      z[1] = (Compute)n.y;
      z[2] = (Compute)n.z;
      z[3] = (Compute)n.w;
    }

    double s[4];
    if constexpr (FS_GROUPED) {
      int piece = offset < left ? 0 : 1 + (offset - left) / width;
      int next = left + piece * width;
      for (int i = 0; i < 4; ++i) {
        if (offset + i == next) {
          ++piece;
          next += width;
        }
        s[i] = i < present ? scale[piece] : 0.0;
      }
    } else {
      s[0] = s[1] = s[2] = s[3] = *scale;
    }
    FS_OUT *out = rows + element;
#pragma unroll 1
    for (int r = 0; r < radii_count; ++r) {
      Four<FS_OUT> moved;
      for (int i = 0; i < 4; ++i) narrow(displaced(w[i], (Compute)__dmul_rn(radii[r], s[i]), z[i]), moved.at[i]);
      store(out, absent, present, moved);
      out += segment.count;
    }
  }
}

}  // namespace fastscape
