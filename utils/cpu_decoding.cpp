// A decoding step of a model built like Llama: all layers in one call. Between the products of a small model Python
// takes as long as the products do. What it computes is written out in inference/llama_decoder.py.

#include <ATen/core/dispatch/Dispatcher.h>

#include "cpu_kernels.h"

namespace cpu_kernels {

typedef std::optional<at::Tensor> Maybe;

// A layer's weights, in the order of inference/kernel_step.py's `weights_of`; biases and norms of heads may be none.
enum Norms { INPUT, AFTER, QUERY_HEADS, KEY_HEADS, NUM_NORMS };
enum Linears { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, NUM_LINEARS };
constexpr int64_t NUM_WEIGHTS = NUM_NORMS + 2 * NUM_LINEARS;

// PyTorch has it where oneDNN is, and no header for it.
at::Tensor onednn_linear(const at::Tensor& states, const at::Tensor& weight, const Maybe& bias) {
  typedef c10::List<std::optional<at::Scalar>> Scalars;
  static const auto linear = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
                                 .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const Maybe&, std::string_view,
                                                   Scalars, std::optional<std::string_view>)>();
  return linear.call(states, weight, bias, "none", Scalars(), "");
}

class Layer {
 public:
  Layer(const c10::List<Maybe>& weights, int64_t number, double eps, bool by_onednn)
      : weights_(weights), first_(number * NUM_WEIGHTS), eps_(eps), by_onednn_(by_onednn) {}

  at::Tensor norm(Norms which, const at::Tensor& states) const {
    const Maybe weight = weights_.get(first_ + which);
    return weight ? std::get<0>(rms_norm(states.contiguous(), *weight, eps_)) : states;
  }

  // (B, I) -> (B, O), as utils/cpu_linear.py's `product`.
  at::Tensor linear(Linears which, const at::Tensor& states) const {
    const int64_t place = first_ + NUM_NORMS + which;
    const Maybe weight = weights_.get(place), bias = weights_.get(place + NUM_LINEARS);
    return by_onednn_ ? onednn_linear(states, *weight, bias) : at::linear(states, *weight, bias);
  }

  // (B, O) -> (B, heads, 1, D).
  at::Tensor heads(Linears which, const at::Tensor& states, int64_t d) const {
    return linear(which, states).view({states.size(0), -1, 1, d});
  }

 private:
  const c10::List<Maybe>& weights_;
  int64_t first_;
  double eps_;
  bool by_onednn_;
};

// (B, hidden) states of the latest tokens and (B, 1, D) cosines and sines of their places -> the states behind all
// layers, before the last norm. Caches are of all layers, as `attend_latest` has them of one.
at::Tensor decode_layers(const at::Tensor& states, const at::Tensor& cos, const at::Tensor& sin,
                         const c10::List<Maybe>& weights, at::TensorList prefix_keys, at::TensorList prefix_values,
                         at::TensorList suffix_keys, at::TensorList suffix_values, const at::Tensor& prefix_lengths,
                         int64_t width, double scale, double eps, bool by_onednn) {
  const size_t num_layers = prefix_keys.size();
  const int64_t d = cos.size(-1);
  TORCH_CHECK(weights.size() == num_layers * NUM_WEIGHTS && prefix_values.size() == num_layers &&
                  suffix_keys.size() == num_layers && suffix_values.size() == num_layers,
              "decode_layers: ", weights.size(), " weights and caches of ", suffix_keys.size(), " for ", num_layers,
              " layers");
  const at::AutoDispatchBelowADInplaceOrView guard;  // no gradients
  at::Tensor hidden = states.clone();
  for (size_t number = 0; number < num_layers; ++number) {
    const Layer layer(weights, number, eps, by_onednn);
    const at::Tensor normed = layer.norm(INPUT, hidden);
    const at::Tensor query = layer.norm(QUERY_HEADS, layer.heads(QUERY, normed, d));
    const at::Tensor key = layer.norm(KEY_HEADS, layer.heads(KEY, normed, d));
    at::Tensor keys = suffix_keys[number], values = suffix_values[number];
    const at::Tensor mixed = attend_latest(rotate(query, cos, sin, false), rotate(key, cos, sin, false),
                                           layer.heads(VALUE, normed, d), prefix_keys[number], prefix_values[number],
                                           keys, values, prefix_lengths, width, scale);
    hidden.add_(layer.linear(OUTPUT, mixed.flatten(1)));
    const at::Tensor after = layer.norm(AFTER, hidden);
    hidden.add_(layer.linear(DOWN, swiglu(layer.linear(GATE, after), layer.linear(UP, after))));
  }
  return hidden;
}

TORCH_LIBRARY_FRAGMENT(cpu_kernels, m) {
  m.def("decode_layers(Tensor states, Tensor cos, Tensor sin, Tensor?[] weights, Tensor[] prefix_keys, "
        "Tensor[] prefix_values, Tensor(a!)[] suffix_keys, Tensor(b!)[] suffix_values, Tensor prefix_lengths, "
        "int width, float scale, float eps, bool by_onednn) -> Tensor");
}

TORCH_LIBRARY_IMPL(cpu_kernels, CPU, m) { m.impl("decode_layers", decode_layers); }

}  // namespace cpu_kernels
