// Counter-based normals and signs, shared by g++ (CPU kernels, tests) and by nvcc / NVRTC.
//
// Philox4x32-10 (Salmon, Moraes, Dror & Shaw, SC 2011), then Box-Muller made of IEEE-exact operations only: integers, +, *,
// correctly rounded square root. Never a fused multiply-add, never a library transcendental, so every language and device gives
// the bits of fastscape/ops/direction/reference.py. Host compilers need -ffp-contract=off -fno-math-errno.
#pragma once
#if defined(__CUDACC_RTC__)
typedef unsigned int uint32_t;
typedef int int32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
#else
#include <cstdint>
#include <cstring>
#endif
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define FS_INLINE __host__ __device__ __forceinline__
#else
#define FS_INLINE inline __attribute__((always_inline))
#endif

namespace fastscape {

struct Words { uint32_t x, y, z, w; };
struct Normals { float x, y, z, w; };

#if defined(__CUDA_ARCH__)
FS_INLINE uint32_t mul_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
FS_INLINE float mul(float a, float b) { return __fmul_rn(a, b); }
FS_INLINE float add(float a, float b) { return __fadd_rn(a, b); }
FS_INLINE float square_root(float a) { return __fsqrt_rn(a); }
FS_INLINE int32_t bits_of(float a) { return __float_as_int(a); }
FS_INLINE float float_of(int32_t a) { return __int_as_float(a); }
#else
FS_INLINE uint32_t mul_high(uint32_t a, uint32_t b) { return (uint32_t)(((uint64_t)a * (uint64_t)b) >> 32); }
FS_INLINE float mul(float a, float b) { return a * b; }
FS_INLINE float add(float a, float b) { return a + b; }
#if defined(__CUDACC_RTC__)  // NVRTC parses the host branch, never runs it
FS_INLINE float square_root(float a) { return a; }
FS_INLINE int32_t bits_of(float a) { return (int32_t)a; }
FS_INLINE float float_of(int32_t a) { return (float)a; }
#else
FS_INLINE float square_root(float a) { return __builtin_sqrtf(a); }
FS_INLINE int32_t bits_of(float a) { int32_t i; std::memcpy(&i, &a, 4); return i; }
FS_INLINE float float_of(int32_t a) { float f; std::memcpy(&f, &a, 4); return f; }
#endif
#endif

// The four output words of counter (q, direction, id, stream) under key (k0, k1).
FS_INLINE Words philox(uint32_t q, uint32_t direction, uint32_t id, uint32_t stream, uint32_t k0, uint32_t k1) {
  uint32_t c0 = q, c1 = direction, c2 = id, c3 = stream;
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = mul_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = mul_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// Two standard normals: radius sqrt(-2 ln u) with u = (floor(r0 / 2^9) + 1/2) 2^-23, angle r1 / 2^32 turns.
FS_INLINE void box_muller(uint32_t r0, uint32_t r1, float &cosine, float &sine) {
  const float u = mul(add((float)(int32_t)(r0 >> 9), 0.5f), 1.1920928955078125e-07f);
  const int32_t shifted = bits_of(u) - 0x3f3504f3;  // ln u = ln m + e ln 2, m in [sqrt(1/2), sqrt(2))
  const float f = add(float_of((shifted & 0x007fffff) + 0x3f3504f3), -1.0f);
  const float z = mul(f, f);
  float p = add(mul(f, 7.0376836292e-2f), -1.1514610310e-1f);  // Cephes logf
  p = add(mul(p, f), 1.1676998740e-1f);
  p = add(mul(p, f), -1.2420140846e-1f);
  p = add(mul(p, f), 1.4249322787e-1f);
  p = add(mul(p, f), -1.6668057665e-1f);
  p = add(mul(p, f), 2.0000714765e-1f);
  p = add(mul(p, f), -2.4999993993e-1f);
  p = add(mul(p, f), 3.3333331174e-1f);
  p = mul(mul(p, f), z);
  p = add(p, mul(z, -0.5f));
  const float log_u = add(add(f, p), mul((float)(shifted >> 23), 0.69314718055994531f));
  const float radius = square_root(mul(log_u, -2.0f));

  const uint32_t quadrant = (r1 + 0x20000000u) >> 30;  // nearest quarter turn; the rest lies in [-1/8, 1/8) turns
  const float a = mul((float)((int32_t)(r1 - (quadrant << 30)) >> 6), 9.362675707309822e-08f);  // (pi/4) / 2^23
  const float a2 = mul(a, a);
  float s = add(mul(a2, -1.9515295891e-4f), 8.3321608736e-3f);
  s = add(mul(s, a2), -1.6666654611e-1f);
  s = add(mul(mul(s, a2), a), a);
  float c = add(mul(a2, 2.443315711809948e-5f), -1.388731625493765e-3f);
  c = add(mul(c, a2), 4.166664568298827e-2f);
  c = add(mul(mul(c, a2), a2), add(mul(a2, -0.5f), 1.0f));
  const bool odd = quadrant & 1u;
  const int32_t sine_bits = bits_of(odd ? c : s) ^ (int32_t)((quadrant & 2u) << 30);
  const int32_t cosine_bits = bits_of(odd ? s : c) ^ (int32_t)(((quadrant + 1u) & 2u) << 30);
  cosine = mul(radius, float_of(cosine_bits));
  sine = mul(radius, float_of(sine_bits));
}

// Elements 4 q .. 4 q + 3 of a Gaussian direction.
FS_INLINE Normals normals(uint32_t q, uint32_t direction, uint32_t id, uint32_t stream, uint32_t k0, uint32_t k1) {
  const Words r = philox(q, direction, id, stream, k0, k1);
  Normals n;
  box_muller(r.x, r.y, n.x, n.y);
  box_muller(r.z, r.w, n.z, n.w);
  return n;
}

// Element e of a Rademacher direction, from the words of counter q = e / 128: a set bit is -1.
FS_INLINE float sign_of(const Words &r, uint32_t e) {
  const uint32_t word = (e >> 5) & 3u;
  const uint32_t bits = word < 2 ? (word == 0 ? r.x : r.y) : (word == 2 ? r.z : r.w);
  return float_of((int32_t)(0x3f800000u | (((bits >> (e & 31u)) & 1u) << 31)));
}

}  // namespace fastscape
