// What the kernels of a CPU share: vectors of floats, exp, and a look at what they are given.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;  // floats of a vector, and how many vectors a processor holds
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector vector) { *reinterpret_cast<Vector*>(to) = vector; }

// exp(x) to 2 units in the last place, in arithmetic that compilers turn into vectors: 2^k * e^r with |r| <= ln 2 / 2.
inline float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);  // NaN stays
  float k = std::nearbyintf(x * 1.44269504f);
  float r = x - k * 0.693359375f - k * -2.12194440e-4f;
  float e = 1.9875691500e-4f;
  e = e * r + 1.3981999507e-3f;
  e = e * r + 8.3334519073e-3f;
  e = e * r + 4.1665795894e-2f;
  e = e * r + 1.6666665459e-1f;
  e = e * r + 5.0000001201e-1f;
  e = e * r * r + r + 1.0f;
  int32_t bits = (static_cast<int32_t>(k) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return e * scale;
}

// Pointers tell no sizes: what does not fit would be read beyond its end, such as a weight that ZeRO-3 has let go.
inline void check_alike(const at::Tensor& one, const at::Tensor& other) {
  TORCH_CHECK(one.sizes() == other.sizes() && one.is_contiguous() && other.is_contiguous(), "kernel: shapes ",
              one.sizes(), " and ", other.sizes());
}

// The largest of `num` numbers, at least one; of NaN and others it may be one of the others.
inline float maximum(const float* numbers, int64_t num) {
  float most = numbers[0];
  int64_t i = 0;
  if (num >= LANES) {
    Vector mosts = load(numbers);
    for (i = LANES; i + LANES <= num; i += LANES) {
      const Vector some = load(numbers + i);
      mosts = some > mosts ? some : mosts;
    }
    most = mosts[0];
    for (int lane = 1; lane < LANES; ++lane) most = std::max(most, static_cast<float>(mosts[lane]));
  }
  for (; i < num; ++i) most = std::max(most, numbers[i]);
  return most;
}

// ----- kernels that others are made of -----

namespace cpu_kernels {

// (.., D) states, (D,) weight -> states / sqrt(mean of squares + eps) * weight, and (n,) 1 / sqrt(..).
std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& states, const at::Tensor& weight, double eps);

// gate / (1 + e^-gate) * up
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

// (B, H, L, D) heads, (B or 1, L, D) cosines and sines -> heads * cos + (-second half, first half) * sin, as heads lie
// in memory. Backward: the gradient of the heads, given that of the result.
at::Tensor rotate(const at::Tensor& heads, const at::Tensor& cos, const at::Tensor& sin, bool is_backward);

// The latest tokens of S segments of K slots: their keys and values, (S * K, H, 1, D), go into column `width` - 1 of
// the suffixes, (S, H, K, capacity, D), and their queries, (S * K, H * Q, 1, D), see the first of their segment's
// prefixes, (S, H, T, D), as many as `prefix_lengths` (S,) says, and `width` columns of their own suffix.
// -> (S * K, 1, H * Q, D).
at::Tensor attend_latest(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const at::Tensor& prefix_keys, const at::Tensor& prefix_values, at::Tensor& suffix_keys,
                         at::Tensor& suffix_values, const at::Tensor& prefix_lengths, int64_t width, double scale);

}  // namespace cpu_kernels
