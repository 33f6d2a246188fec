// What a model computes between its products, forward and backward in one pass over memory each: float32.
// Rows are divided over PyTorch's threads; sums over rows are added block by block, so that no number depends on how
// many threads there are.

#include "cpu_kernels.h"

namespace cpu_kernels {

constexpr int64_t BLOCK = 64;   // rows whose gradients of a weight are added up before they meet others
constexpr int64_t PART = 4096;  // numbers of a row that are added up before they meet others
constexpr int64_t WORDS = 64;   // whose probabilities are added up before they meet others, in a draw
constexpr float LOWEST = -87.0f;            // fast_exp knows no less
constexpr float SMALLEST_SHARE = 0x1p-24f;  // that is drawn, as in inference/sampling.py

void check_weight(const at::Tensor& states, const at::Tensor& weight) {
  TORCH_CHECK(weight.numel() == states.size(-1) && states.is_contiguous() && weight.is_contiguous(),
              "rms_norm: a weight of ", weight.numel(), " for states of ", states.size(-1));
}

int64_t num_rows(const at::Tensor& states) { return states.numel() / states.size(-1); }

std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& states, const at::Tensor& weight, double eps) {
  check_weight(states, weight);
  const int64_t d = states.size(-1), n = num_rows(states);
  at::Tensor out = at::empty_like(states), factors = at::empty({n}, states.options());
  const float *x = states.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  float *y = out.data_ptr<float>(), *f = factors.data_ptr<float>();
  at::parallel_for(0, n, std::max<int64_t>(1, 16384 / d), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* of = x + row * d;
      float* to = y + row * d;
      float sum = 0;
      for (int64_t i = 0; i < d; ++i) sum += of[i] * of[i];
      const float factor = 1.0f / std::sqrt(sum / d + static_cast<float>(eps));
      for (int64_t i = 0; i < d; ++i) to[i] = of[i] * factor * w[i];
      f[row] = factor;
    }
  });
  return {out, factors};
}

// With x^ = x * factor: grad x = factor * (g w - x^ * mean(g w x^)); grad w = sum over rows of g x^.
std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad, const at::Tensor& states,
                                                     const at::Tensor& weight, const at::Tensor& factors) {
  check_weight(states, weight);
  check_alike(grad, states);
  TORCH_CHECK(factors.numel() == num_rows(states) && factors.is_contiguous(), "rms_norm: a weight of other rows");
  const int64_t d = states.size(-1), n = num_rows(states), blocks = (n + BLOCK - 1) / BLOCK;
  at::Tensor out = at::empty_like(states), sums = at::zeros({blocks, d}, states.options());
  const float *g = grad.const_data_ptr<float>(), *x = states.const_data_ptr<float>();
  const float *w = weight.const_data_ptr<float>(), *f = factors.const_data_ptr<float>();
  float *y = out.data_ptr<float>(), *s = sums.data_ptr<float>();
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* sum = s + block * d;
      for (int64_t row = block * BLOCK; row < std::min(n, (block + 1) * BLOCK); ++row) {
        const float *of = x + row * d, *slope = g + row * d;
        float* to = y + row * d;
        const float factor = f[row];
        float along = 0;
        for (int64_t i = 0; i < d; ++i) along += slope[i] * w[i] * of[i];
        along *= factor * factor / d;
        for (int64_t i = 0; i < d; ++i) {
          to[i] = factor * (slope[i] * w[i] - of[i] * along);
          sum[i] += slope[i] * of[i] * factor;
        }
      }
    }
  });
  return {out, sums.sum(0)};
}

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  check_alike(gate, up);
  at::Tensor out = at::empty_like(gate);
  const float *a = gate.const_data_ptr<float>(), *b = up.const_data_ptr<float>();
  float* y = out.data_ptr<float>();
  at::parallel_for(0, gate.numel(), 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = a[i] / (1.0f + fast_exp(-a[i])) * b[i];
  });
  return out;
}

// With s = 1 / (1 + e^-gate): grad gate = g up s (1 + gate (1 - s)); grad up = g gate s.
std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& grad, const at::Tensor& gate,
                                                   const at::Tensor& up) {
  check_alike(gate, up);
  check_alike(grad, gate);
  at::Tensor of_gate = at::empty_like(gate), of_up = at::empty_like(up);
  const float *g = grad.const_data_ptr<float>(), *a = gate.const_data_ptr<float>(), *b = up.const_data_ptr<float>();
  float *y = of_gate.data_ptr<float>(), *z = of_up.data_ptr<float>();
  at::parallel_for(0, gate.numel(), 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float s = 1.0f / (1.0f + fast_exp(-a[i]));
      y[i] = g[i] * b[i] * s * (1.0f + a[i] * (1.0f - s));
      z[i] = g[i] * a[i] * s;
    }
  });
  return {of_gate, of_up};
}

at::Tensor rotate(const at::Tensor& heads, const at::Tensor& cos, const at::Tensor& sin, bool is_backward) {
  const int64_t batch = heads.size(0), num_heads = heads.size(1), length = heads.size(2), d = heads.size(3);
  const int64_t half = d / 2;
  check_alike(cos, sin);
  TORCH_CHECK(heads.stride(3) == 1 && (cos.size(0) == 1 || cos.size(0) == batch) && cos.size(1) == length &&
              cos.size(2) == d && d % 2 == 0, "rotate: angles ", cos.sizes(), " for heads ", heads.sizes());
  at::Tensor out = at::empty_strided({batch, num_heads, length, d}, {num_heads * length * d, d, num_heads * d, 1},
                                     heads.options());
  const float *x = heads.const_data_ptr<float>(), *c = cos.const_data_ptr<float>(), *s = sin.const_data_ptr<float>();
  float* y = out.data_ptr<float>();
  const int64_t step_b = heads.stride(0), step_h = heads.stride(1), step_l = heads.stride(2);
  at::parallel_for(0, batch * length, std::max<int64_t>(1, 16384 / (num_heads * d)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / length, l = i % length, at = (cos.size(0) == 1 ? l : i) * d;
      const float *cosines = c + at, *sines = s + at;
      for (int64_t h = 0; h < num_heads; ++h) {
        const float* of = x + b * step_b + h * step_h + l * step_l;
        float* to = y + (i * num_heads + h) * d;
        if (is_backward) {
          for (int64_t j = 0; j < half; ++j) {
            to[j] = of[j] * cosines[j] + of[j + half] * sines[j + half];
            to[j + half] = of[j + half] * cosines[j + half] - of[j] * sines[j];
          }
        } else {
          for (int64_t j = 0; j < half; ++j) {
            to[j] = of[j] * cosines[j] - of[j + half] * sines[j];
            to[j + half] = of[j + half] * cosines[j + half] + of[j] * sines[j + half];
          }
        }
      }
    }
  });
  return out;
}

void check_of_rows(const at::Tensor& logits, std::initializer_list<const at::Tensor*> numbers) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous() && logits.numel() > 0, "head: logits ", logits.sizes());
  for (const at::Tensor* one : numbers)
    TORCH_CHECK(one->sizes() == at::IntArrayRef({logits.size(0)}) && one->is_contiguous(), "head: ", one->sizes(),
                " for logits ", logits.sizes());
}

// (n, V) logits -> the highest, the logarithm of the sum of exp(logit - highest), the entropy of the softmax, (n,) each.
std::tuple<at::Tensor, at::Tensor, at::Tensor> softmax_sums(const at::Tensor& logits) {
  check_of_rows(logits, {});
  const int64_t n = logits.size(0), v = logits.size(1);
  at::Tensor highest = at::empty({n}, logits.options()), log_sums = at::empty_like(highest);
  at::Tensor entropies = at::empty_like(highest);
  const float* x = logits.const_data_ptr<float>();
  float *tops = highest.data_ptr<float>(), *l = log_sums.data_ptr<float>(), *h = entropies.data_ptr<float>();
  at::parallel_for(0, n, std::max<int64_t>(1, 16384 / v), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *of = x + row * v, top = maximum(of, v);
      double sum = 0, weighted = 0;  // of exp(logit - top), and of these times logit - top
      for (int64_t start = 0; start < v; start += PART) {
        float part = 0, part_weighted = 0;
        for (int64_t i = start; i < std::min(v, start + PART); ++i) {
          const float below = of[i] - top, e = fast_exp(below);
          part += e;
          part_weighted += e * below;
        }
        sum += part;
        weighted += part_weighted;
      }
      const double log = std::log(sum);
      tops[row] = top;
      l[row] = static_cast<float>(log);
      h[row] = static_cast<float>(log - weighted / sum);
    }
  });
  return {highest, log_sums, entropies};
}

// A part (n, V) of the logits and numbers of a row: with log p = logit - log_sum the gradients
// -(offset + at_log_p * log p) * p go into `out`, which may be the logits, and `at_target` is added at a target of it.
void logit_gradients(const at::Tensor& logits, const at::Tensor& log_sums, const at::Tensor& targets,
                     const at::Tensor& at_target, const at::Tensor& at_log_p, const at::Tensor& offset,
                     at::Tensor& out) {
  check_alike(logits, out);
  check_of_rows(logits, {&log_sums, &targets, &at_target, &at_log_p, &offset});
  const int64_t n = logits.size(0), v = logits.size(1);
  const float *x = logits.const_data_ptr<float>(), *logs = log_sums.const_data_ptr<float>();
  const float *t = at_target.const_data_ptr<float>(), *a = at_log_p.const_data_ptr<float>();
  const float* b = offset.const_data_ptr<float>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  float* y = out.data_ptr<float>();
  at::parallel_for(0, n, std::max<int64_t>(1, 16384 / v), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *of = x + row * v, log = logs[row], factor = a[row], constant = b[row];
      float* to = y + row * v;
      for (int64_t i = 0; i < v; ++i) to[i] = -(constant + factor * (of[i] - log)) * fast_exp(of[i] - log);
      if (0 <= target[row] && target[row] < v) to[target[row]] += t[row];
    }
  });
}

// (n, V) logits and numbers of a row in [0, 1] -> the first word at which the sum of exp(logit / temperature) reaches
// that share of all, and its log-probability, (n,) each. A word of probability 0 is at neither end.
std::tuple<at::Tensor, at::Tensor> draw(const at::Tensor& logits, const at::Tensor& noise, double temperature) {
  check_of_rows(logits, {&noise});
  const int64_t n = logits.size(0), v = logits.size(1), blocks = (v + WORDS - 1) / WORDS;
  at::Tensor chosen = at::empty({n}, logits.options().dtype(at::kLong)), logprobs = at::empty({n}, logits.options());
  const float *x = logits.const_data_ptr<float>(), *shares = noise.const_data_ptr<float>();
  const float factor = static_cast<float>(1 / temperature);
  int64_t* ids = chosen.data_ptr<int64_t>();
  float* l = logprobs.data_ptr<float>();
  at::parallel_for(0, n, std::max<int64_t>(1, 16384 / v), [&](int64_t begin, int64_t end) {
    std::vector<float> weights(v), sums(blocks);
    for (int64_t row = begin; row < end; ++row) {
      const float *of = x + row * v, top = maximum(of, v);
      double total = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        float sum = 0;
        for (int64_t i = block * WORDS; i < std::min(v, (block + 1) * WORDS); ++i) {
          const float below = (of[i] - top) * factor;
          sum += weights[i] = below < LOWEST ? 0.0f : fast_exp(below);
        }
        total += sums[block] = sum;
      }
      const double target = std::max(shares[row], SMALLEST_SHARE) * total;
      double before = 0;
      int64_t block = 0, last = 0;  // the last word that could be
      while (block + 1 < blocks && before + sums[block] < target) before += sums[block++];
      for (int64_t i = block * WORDS; i < v; ++i) {
        if (weights[i] == 0) continue;
        last = i;
        if ((before += weights[i]) >= target) break;
      }
      ids[row] = last;
      l[row] = (of[last] - top) * factor - static_cast<float>(std::log(total));
    }
  });
  return {chosen, logprobs};
}

TORCH_LIBRARY(cpu_kernels, m) {
  m.def("rms_norm(Tensor states, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("rms_norm_backward(Tensor grad, Tensor states, Tensor weight, Tensor factors) -> (Tensor, Tensor)");
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def("swiglu_backward(Tensor grad, Tensor gate, Tensor up) -> (Tensor, Tensor)");
  m.def("rotate(Tensor heads, Tensor cos, Tensor sin, bool is_backward) -> Tensor");
  m.def("softmax_sums(Tensor logits) -> (Tensor, Tensor, Tensor)");
  m.def("logit_gradients(Tensor logits, Tensor log_sums, Tensor targets, Tensor at_target, Tensor at_log_p, "
        "Tensor offset, Tensor(a!) out) -> ()");
  m.def("draw(Tensor logits, Tensor noise, float temperature) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(cpu_kernels, CPU, m) {
  m.impl("rms_norm", rms_norm);
  m.impl("rms_norm_backward", rms_norm_backward);
  m.impl("swiglu", swiglu);
  m.impl("swiglu_backward", swiglu_backward);
  m.impl("rotate", rotate);
  m.impl("softmax_sums", softmax_sums);
  m.impl("logit_gradients", logit_gradients);
  m.impl("draw", draw);
}

}  // namespace cpu_kernels
