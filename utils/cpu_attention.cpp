// Attention on a CPU where responses share a prefix, in decoding and in training: float32, heads of a multiple of 16
// numbers. Nothing is copied for a response, and no pair of tokens is computed that no mask would let through, up to
// the size of a block. A prefix and what shares it are one thread's: no number depends on how many threads there are.

#include "cpu_kernels.h"

namespace cpu_kernels {

typedef int32_t Lanes __attribute__((vector_size(4 * LANES)));
constexpr int64_t DIVISOR = 16;  // of the size of a head, whatever the processor
constexpr int64_t ROWS = 4;      // queries that meet the keys of a prefix together, in decoding
constexpr int64_t BLOCK = 32;    // queries whose scores are there at once, in training

inline int64_t whole_vectors(int64_t num) { return (num + LANES - 1) / LANES * LANES; }

// ----- products -----

// An R x C part of a product: to[r, vector c] (+)= the sum over k of a[r * a_row + k * a_column] * b[k, vector c].
template <int R, int C>
inline void tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, int64_t depth,
                 float* to, int64_t to_row, bool adds) {
  Vector sums[R][C] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector row[C];
    for (int c = 0; c < C; ++c) row[c] = load(b + k * b_row + c * LANES);
    for (int r = 0; r < R; ++r) {
      const float factor = a[r * a_row + k * a_column];
      for (int c = 0; c < C; ++c) sums[r][c] += factor * row[c];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      float* place = to + r * to_row + c * LANES;
      store(place, adds ? load(place) + sums[r][c] : sums[r][c]);
    }
  }
}

template <int C>
inline void column_of_tiles(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                            int64_t depth, float* to, int64_t to_row, int64_t rows, bool adds) {
  int64_t m = 0;
  for (; m + 4 <= rows; m += 4) tile<4, C>(a + m * a_row, a_row, a_column, b, b_row, depth, to + m * to_row, to_row, adds);
  for (; m < rows; ++m) tile<1, C>(a + m * a_row, a_row, a_column, b, b_row, depth, to + m * to_row, to_row, adds);
}

// (rows, depth) a, of any strides, times (depth, columns) b -> or, with `adds`, onto (rows, columns) `to`.
void multiply(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* to, int64_t to_row,
              int64_t rows, int64_t columns, int64_t depth, bool adds) {
  constexpr int WIDE = REGISTERS / 8;  // four rows of so many sums, and what they are made of, fit into registers
  int64_t n = 0;
  for (; n + WIDE * LANES <= columns; n += WIDE * LANES)
    column_of_tiles<WIDE>(a, a_row, a_column, b + n, b_row, depth, to + n, to_row, rows, adds);
  for (; n < columns; n += LANES)
    column_of_tiles<1>(a, a_row, a_column, b + n, b_row, depth, to + n, to_row, rows, adds);
}

// Of both vectors sums over lanes that are `step` apart: bit `step` of a lane's number says which vector it is of.
template <int step>
inline Vector fold(Vector one, Vector other) {
#ifdef __clang__
  Vector sums;
  for (int i = 0; i < LANES; ++i) sums[i] = (i & step) ? other[i - step] + other[i] : one[i] + one[i + step];
  return sums;
#else
  Lanes low, high;
  for (int i = 0; i < LANES; ++i) {
    low[i] = (i & step) ? LANES + i - step : i;
    high[i] = low[i] + step;
  }
  return __builtin_shuffle(one, other, low) + __builtin_shuffle(one, other, high);
#endif
}

// 2 * `step` vectors -> the sum of each, in its lane.
template <int step = LANES / 2>
inline Vector sums_of(Vector* vectors) {
  for (int i = 0; i < step; ++i) vectors[i] = fold<step>(vectors[i], vectors[i + step]);
  if constexpr (step > 1) return sums_of<step / 2>(vectors);
  return vectors[0];
}

// R queries and `num` keys of `d` numbers, one after the other -> scores[r * width + t], and some more behind them.
template <int R>
void dots(const float* queries, const float* keys, int64_t num, int64_t d, float* scores, int64_t width) {
  constexpr int AT_ONCE = LANES / R;
  for (int64_t t = 0; t < num; t += AT_ONCE) {
    const float* some[AT_ONCE];
    for (int j = 0; j < AT_ONCE; ++j) some[j] = keys + std::min(t + j, num - 1) * d;
    Vector sums[LANES] = {};
    for (int64_t i = 0; i < d; i += LANES) {
      Vector parts[R];
      for (int r = 0; r < R; ++r) parts[r] = load(queries + r * d + i);
      for (int j = 0; j < AT_ONCE; ++j) {
        const Vector key = load(some[j] + i);
        for (int r = 0; r < R; ++r) sums[r * AT_ONCE + j] += parts[r] * key;
      }
    }
    const Vector found = sums_of(sums);
    for (int r = 0; r < R; ++r)
      std::memcpy(scores + r * width + t, reinterpret_cast<const float*>(&found) + r * AT_ONCE, AT_ONCE * sizeof(float));
  }
}

// The first `num` of a row become the softmax of `scale` times them; what follows up to a whole vector is lost.
// -> the logarithm of the sum of the exponentials.
float softmax(float* row, int64_t num, float scale) {
  const int64_t end = whole_vectors(num);
  std::fill(row + num, row + end, -INFINITY);
  const float highest = maximum(row, end);
  float sum = 0;
  for (int64_t t = 0; t < end; ++t) sum += row[t] = fast_exp(scale * (row[t] - highest));
  const float share = 1.0f / sum;
  for (int64_t t = 0; t < end; ++t) row[t] *= share;
  return scale * highest + std::log(sum);
}

// ----- decoding -----

at::Tensor attend_latest(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const at::Tensor& prefix_keys, const at::Tensor& prefix_values, at::Tensor& suffix_keys,
                         at::Tensor& suffix_values, const at::Tensor& prefix_lengths, int64_t width, double scale) {
  const int64_t S = suffix_keys.size(0), H = suffix_keys.size(1), K = suffix_keys.size(2), D = suffix_keys.size(4);
  const int64_t T = prefix_keys.size(2), capacity = suffix_keys.size(3), Q = query.size(1) / H;
  TORCH_CHECK(query.sizes() == at::IntArrayRef({S * K, H * Q, 1, D}) && query.stride(3) == 1 && D % DIVISOR == 0 &&
                  key.sizes() == at::IntArrayRef({S * K, H, 1, D}) && key.stride(3) == 1 &&
                  value.sizes() == key.sizes() && value.stride(3) == 1 &&
                  prefix_keys.sizes() == at::IntArrayRef({S, H, T, D}) && prefix_lengths.numel() == S &&
                  prefix_lengths.is_contiguous() && width > 0 && width <= capacity,
              "attend_latest: queries ", query.sizes(), ", keys ", key.sizes(), ", prefixes ", prefix_keys.sizes(),
              ", suffixes ", suffix_keys.sizes(), ", width ", width);
  check_alike(prefix_keys, prefix_values);
  check_alike(suffix_keys, suffix_values);
  at::Tensor out = at::empty({S * K, 1, H * Q, D}, query.options());
  const float *of_query = query.const_data_ptr<float>(), *of_key = key.const_data_ptr<float>();
  const float *of_value = value.const_data_ptr<float>(), *first_keys = prefix_keys.const_data_ptr<float>();
  const float* first_values = prefix_values.const_data_ptr<float>();
  float *keys = suffix_keys.data_ptr<float>(), *values = suffix_values.data_ptr<float>(), *to = out.data_ptr<float>();
  const int64_t* lengths = prefix_lengths.const_data_ptr<int64_t>();
  for (int64_t s = 0; s < S; ++s) TORCH_CHECK(0 < lengths[s] && lengths[s] <= T, "attend_latest: length ", lengths[s]);
  const int64_t query_row = query.stride(0), query_head = query.stride(1), key_row = key.stride(0);
  const int64_t key_head = key.stride(1), value_row = value.stride(0), value_head = value.stride(1);

  at::parallel_for(0, S * H * K, std::max<int64_t>(1, 16384 / D), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = i % K, h = i / K % H, row = i / K / H * K + k, place = (i * capacity + width - 1) * D;
      std::copy_n(of_key + row * key_row + h * key_head, D, keys + place);
      std::copy_n(of_value + row * value_row + h * value_head, D, values + place);
    }
  });
  const int64_t blocks = (K * Q + ROWS - 1) / ROWS, room = whole_vectors(T + width) + LANES;
  const int64_t grain = std::max<int64_t>(1, 16384 / (ROWS * room));
  at::parallel_for(0, S * H * blocks, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> queries(ROWS * D), mixed(ROWS * D), scores(ROWS * room);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t segment = item / blocks, h = segment % H, s = segment / H, length = lengths[s];
      const int64_t first = item % blocks * ROWS, num = std::min(ROWS, K * Q - first);
      int64_t slots[ROWS], heads[ROWS];
      for (int64_t r = 0; r < ROWS; ++r) {
        const int64_t n = first + std::min(r, num - 1);  // the last is repeated
        slots[r] = n / Q;
        heads[r] = h * Q + n % Q;
        std::copy_n(of_query + (s * K + slots[r]) * query_row + heads[r] * query_head, D, queries.data() + r * D);
      }
      dots<ROWS>(queries.data(), first_keys + segment * T * D, length, D, scores.data(), room);
      for (int64_t r = 0; r < num; ++r) {
        const int64_t own = (segment * K + slots[r]) * capacity * D;
        float* row = scores.data() + r * room;
        dots<1>(queries.data() + r * D, keys + own, width, D, row + length, room);
        softmax(row, length + width, static_cast<float>(scale));
        multiply(row + length, room, 1, values + own, D, mixed.data() + r * D, D, 1, D, width, false);
      }
      multiply(scores.data(), room, 1, first_values + segment * T * D, D, mixed.data(), D, num, D, length, true);
      for (int64_t r = 0; r < num; ++r)
        std::copy_n(mixed.data() + r * D, D, to + ((s * K + slots[r]) * H * Q + heads[r]) * D);
    }
  });
  return out;
}

// ----- training -----

// N packed tokens in stretches: stretch i has `lengths`[i] tokens from token `starts`[i] on. Group g is stretches
// `groups`[g] to `groups`[g + 1]: a prefix, and responses to it. Other tokens see nothing, and nobody sees them.
struct Packed {
  const int64_t *starts, *lengths, *groups;
  int64_t num_groups, longest;  // keys that a response sees

  Packed(const at::Tensor& starts_, const at::Tensor& lengths_, const at::Tensor& groups_, int64_t num_tokens)
      : starts(starts_.const_data_ptr<int64_t>()), lengths(lengths_.const_data_ptr<int64_t>()),
        groups(groups_.const_data_ptr<int64_t>()), num_groups(groups_.numel() - 1), longest(0) {
    check_alike(starts_, lengths_);
    TORCH_CHECK(groups_.is_contiguous() && num_groups >= 0 && groups[0] == 0 && groups[num_groups] == starts_.numel(),
                "attend_packed: groups");
    for (int64_t g = 0; g < num_groups; ++g) {
      TORCH_CHECK(groups[g] < groups[g + 1], "attend_packed: group ", g);
      for (int64_t i = groups[g]; i < groups[g + 1]; ++i) {
        TORCH_CHECK(starts[i] >= 0 && lengths[i] > 0 && starts[i] + lengths[i] <= num_tokens, "attend_packed: stretch ",
                    i, " of ", num_tokens, " tokens");
        longest = std::max(longest, lengths[i] + (i > groups[g] ? lengths[groups[g]] : 0));
      }
    }
  }
};

// (N, heads, D) of which only the last dimension has to lie together.
struct Heads {
  const float* data;
  int64_t row, head;

  explicit Heads(const at::Tensor& heads)
      : data(heads.const_data_ptr<float>()), row(heads.stride(0)), head(heads.stride(1)) {
    TORCH_CHECK(heads.dim() == 3 && heads.size(2) % DIVISOR == 0 && heads.stride(2) == 1, "attend_packed: heads ",
                heads.sizes(), " with strides ", heads.strides());
  }
  const float* at(int64_t token, int64_t h) const { return data + token * row + h * head; }
};

// `num` rows of `d` numbers -> columns of `to`, and zeros behind them up to column `end`.
void transpose(const float* rows, int64_t stride, int64_t num, int64_t d, float* to, int64_t width, int64_t end) {
  for (int64_t t = 0; t < num; ++t)
    for (int64_t i = 0; i < d; ++i) to[i * width + t] = rows[t * stride + i];
  for (int64_t i = 0; i < d; ++i) std::fill(to + i * width + num, to + i * width + end, 0.0f);
}

void check_heads(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  TORCH_CHECK(key.sizes() == value.sizes() && query.size(0) == key.size(0) && query.size(2) == key.size(2) &&
                  query.size(1) % key.size(1) == 0, "attend_packed: queries ", query.sizes(), ", keys ", key.sizes(),
              ", values ", value.sizes());
}

// Tokens `own` .. + `num` of a stretch, which see `shared` tokens from `prefix` on (none, if they are a prefix), and of
// them the queries of a block: `rows` from token `token` on, of query head `head`, which see `seen` keys at most, of
// key-value head `h`: the first row `seen` - `rows` + 1.
struct Block {
  int64_t prefix, shared, own, num, h, head, token, rows, seen;
};

// What a thread computes in: keys and values of a stretch and its prefix as columns, `width` of them; and for each
// query of a block a row.
struct Scratch {
  int64_t width;
  std::vector<float> keys, values, weights, slopes;

  Scratch(int64_t width_, int64_t d)
      : width(width_), keys(d * width_), values(d * width_), weights(BLOCK * width_), slopes(BLOCK * width_) {}
};

// For each stretch and key-value head `prepare(scratch, block)`, whose block has no queries yet, then `attend(scratch,
// block)` for all blocks. A prefix with what shares it is one thread's.
template <typename Prepare, typename Attend>
void for_each_block(const Packed& packed, int64_t num_kv_heads, int64_t per_head, int64_t d, const Prepare& prepare,
                    const Attend& attend) {
  at::parallel_for(0, packed.num_groups * num_kv_heads, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(whole_vectors(packed.longest), d);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = packed.groups[item / num_kv_heads], last = packed.groups[item / num_kv_heads + 1];
      for (int64_t i = first; i < last; ++i) {
        Block block{packed.starts[first], i == first ? 0 : packed.lengths[first], packed.starts[i], packed.lengths[i],
                    item % num_kv_heads};
        prepare(scratch, block);
        for (int64_t n = 0; n < per_head; ++n) {
          for (int64_t done = 0; done < block.num; done += BLOCK) {
            block.head = block.h * per_head + n;
            block.token = block.own + done;
            block.rows = std::min(BLOCK, block.num - done);
            block.seen = block.shared + done + block.rows;
            attend(scratch, block);
          }
        }
      }
    }
  });
}

// The stretch's heads as columns of `columns`, after those of the prefix, which are there; zeros up to a whole vector.
void put_after_prefix(const Heads& heads, const Block& block, int64_t d, int64_t width, std::vector<float>& columns) {
  const int64_t end = whole_vectors(block.shared + block.num) - block.shared;
  transpose(heads.at(block.own, block.h), heads.row, block.num, d, columns.data() + block.shared, width, end);
}

// (N, H * Q, D) queries, (N, H, D) keys and values -> (N, H * Q, D), 0 where a token is in no stretch, and (N, H * Q)
// logarithms of the sums of weights.
std::tuple<at::Tensor, at::Tensor> attend_packed(const at::Tensor& query, const at::Tensor& key,
                                                 const at::Tensor& value, const at::Tensor& starts,
                                                 const at::Tensor& lengths, const at::Tensor& groups, double scale) {
  check_heads(query, key, value);
  const int64_t N = query.size(0), H = key.size(1), Q = query.size(1) / H, D = query.size(2);
  const Packed packed(starts, lengths, groups, N);
  const Heads q(query), k(key), v(value);
  at::Tensor out = at::zeros({N, H * Q, D}, query.options()), sums = at::zeros({N, H * Q}, query.options());
  float *to = out.data_ptr<float>(), *logs = sums.data_ptr<float>();
  auto prepare = [&](Scratch& scratch, const Block& block) {
    put_after_prefix(k, block, D, scratch.width, scratch.keys);
  };
  auto attend = [&](Scratch& scratch, const Block& block) {
    const int64_t width = scratch.width, own_keys = block.seen - block.shared;
    float *weights = scratch.weights.data(), *mixed = to + (block.token * H * Q + block.head) * D;
    multiply(q.at(block.token, block.head), q.row, 1, scratch.keys.data(), width, weights, width, block.rows,
             whole_vectors(block.seen), D, false);
    for (int64_t r = 0; r < block.rows; ++r) {
      float* row = weights + r * width;
      const int64_t count = block.seen - block.rows + r + 1;
      logs[(block.token + r) * H * Q + block.head] = softmax(row, count, static_cast<float>(scale));
      std::fill(row + count, row + block.seen, 0.0f);
    }
    multiply(weights + block.shared, width, 1, v.at(block.own, block.h), v.row, mixed, H * Q * D, block.rows, D,
             own_keys, false);
    multiply(weights, width, 1, v.at(block.prefix, block.h), v.row, mixed, H * Q * D, block.rows, D, block.shared, true);
  };
  for_each_block(packed, H, Q, D, prepare, attend);
  return {out, sums};
}

// With weights w = softmax(scale q k) and u = grad v: grad q = scale w (u - mean of u by w) k, and so on.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_packed_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& out, const at::Tensor& sums, const at::Tensor& starts, const at::Tensor& lengths,
    const at::Tensor& groups, double scale_) {
  check_heads(query, key, value);
  check_heads(grad, key, value);
  check_alike(grad, out);
  const int64_t N = query.size(0), H = key.size(1), Q = query.size(1) / H, D = query.size(2);
  TORCH_CHECK(grad.sizes() == query.sizes() && sums.numel() == N * H * Q && sums.is_contiguous(),
              "attend_packed: gradient ", grad.sizes(), " for queries ", query.sizes());
  const Packed packed(starts, lengths, groups, N);
  const Heads q(query), k(key), v(value), slope(grad), result(out);
  at::Tensor of_query = at::zeros({N, H * Q, D}, query.options());
  at::Tensor of_key = at::zeros({N, H, D}, query.options()), of_value = at::zeros({N, H, D}, query.options());
  float *to_query = of_query.data_ptr<float>(), *to_key = of_key.data_ptr<float>();
  float* to_value = of_value.data_ptr<float>();
  const float* logs = sums.const_data_ptr<float>();
  const float scale = static_cast<float>(scale_);
  auto prepare = [&](Scratch& scratch, const Block& block) {
    put_after_prefix(k, block, D, scratch.width, scratch.keys);
    put_after_prefix(v, block, D, scratch.width, scratch.values);
  };
  auto attend = [&](Scratch& scratch, const Block& block) {
    const int64_t width = scratch.width, rows = block.rows, ends = whole_vectors(block.seen);
    const float *queries = q.at(block.token, block.head), *given = slope.at(block.token, block.head);
    float *w = scratch.weights.data(), *u = scratch.slopes.data();
    float* query_slopes = to_query + (block.token * H * Q + block.head) * D;
    multiply(queries, q.row, 1, scratch.keys.data(), width, w, width, rows, ends, D, false);
    multiply(given, slope.row, 1, scratch.values.data(), width, u, width, rows, ends, D, false);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = block.token + r, count = block.seen - rows + r + 1;
      const float log = logs[token * H * Q + block.head];
      const float *one = slope.at(token, block.head), *other = result.at(token, block.head);
      float mean = 0, *weights = w + r * width, *slopes = u + r * width;
      for (int64_t j = 0; j < D; ++j) mean += one[j] * other[j];
      for (int64_t t = 0; t < count; ++t) {
        weights[t] = fast_exp(scale * weights[t] - log);
        slopes[t] = scale * weights[t] * (slopes[t] - mean);
      }
      std::fill(weights + count, weights + block.seen, 0.0f);
      std::fill(slopes + count, slopes + block.seen, 0.0f);
    }
    // Keys `first` .. + `num` of the rows are tokens from `token` on.
    auto back = [&](int64_t first, int64_t num, int64_t token, bool adds) {
      const int64_t place = (token * H + block.h) * D;
      multiply(u + first, width, 1, k.at(token, block.h), k.row, query_slopes, H * Q * D, rows, D, num, adds);
      multiply(u + first, 1, width, queries, q.row, to_key + place, H * D, num, D, rows, true);
      multiply(w + first, 1, width, given, slope.row, to_value + place, H * D, num, D, rows, true);
    };
    back(block.shared, block.seen - block.shared, block.own, false);
    back(0, block.shared, block.prefix, true);
  };
  for_each_block(packed, H, Q, D, prepare, attend);
  return {of_query, of_key, of_value};
}

TORCH_LIBRARY_FRAGMENT(cpu_kernels, m) {
  m.def("attend_latest(Tensor query, Tensor key, Tensor value, Tensor prefix_keys, Tensor prefix_values, "
        "Tensor(a!) suffix_keys, Tensor(b!) suffix_values, Tensor prefix_lengths, int width, float scale) -> Tensor");
  m.def("attend_packed(Tensor query, Tensor key, Tensor value, Tensor starts, Tensor lengths, Tensor groups, "
        "float scale) -> (Tensor, Tensor)");
  m.def("attend_packed_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor sums, "
        "Tensor starts, Tensor lengths, Tensor groups, float scale) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(cpu_kernels, CPU, m) {
  m.impl("attend_latest", attend_latest);
  m.impl("attend_packed", attend_packed);
  m.impl("attend_packed_backward", attend_packed_backward);
}

}  // namespace cpu_kernels
