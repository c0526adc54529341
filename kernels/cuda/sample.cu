// Sampling: from rows of f32 logits to tokens, with what src/sample.rs gives for the same logits, bit for bit. Only the
// logarithm of a reported log probability may differ in its last place.
//
// A block has a row. Order of application: logit bias; mask; repetition penalty; frequency and presence penalty;
// temperature; min-p; top-k; top-p over what top-k left; the draw in the order of ids. Of equal tokens the lower id is
// the better one.
//
// Nothing is sorted. Weights are whole numbers, so sums are exact in any order, and atomics on them too. The edge of
// top-k or top-p is found by histograms of counts and weights: 1024 bins over the 30 T below the best logit (spread
// out, so that a warp's atomics rarely meet), then, inside the bin of the edge, three digits of the logit's bits: the
// logit at the edge, how many of the tokens equal to it are in, and the exact weight of all that is kept. The draw sums
// what each warp's part of the row weighs, goes into the part where it falls, and so on.
//
// Bytes moved: 4 n a pass, from the second-level cache. Passes: greedy 1; a draw 3; top-k or top-p 7, both 10 (three of
// seven touch one bin only); biases, masks and penalties 1 and a write of 4 n; log probabilities 1, alternatives 1.
// Ceiling: what one multiprocessor takes from the cache (64 bytes a clock) and its f64 rate: a weight is 27 operations
// and a division where T is not 1. Tokens more than 30 T below the best skip them.
// What limits: at vocabularies of 32 k latency, expected (not measured) about 10 us greedy and 40 us with top-p on Hopper;
// at 256 k f64, on devices with few f64 units (sm_86, sm_89) most of all.
//
// One class: a row depends on nothing but itself, its record and its lists.

#include "numbers.cuh"
#include "draw.cuh"

// One row to sample, as src/cuda/record.rs lays it out: 24 words.
struct Record {
  unsigned seed[2];
  unsigned floor[2];  // what a token has to weigh at least: min-p, and at least one unit
  unsigned share[2];  // f64: top-p, 1 where it is off
  unsigned row;       // among the rows of logits
  unsigned choice, position;
  unsigned flags;
  unsigned forced;
  unsigned alternatives;
  unsigned top_k;
  float temperature, repetition, presence, frequency;
  // Into `lists`: pairs of token and f32; pairs of token and count; words of bits.
  unsigned bias, biases, seen, seens, mask, masks;
  unsigned unused;
};
static_assert(sizeof(Record) == 96, "24 words");

constexpr unsigned FORCED = 1, CHANGED = 2, MASKED = 4, REPORTED = 8;

struct Outcome {
  unsigned token;
  unsigned error;  // 0, or one of the two below
  float logprob;
  unsigned alternatives;
};
constexpr unsigned NOT_A_NUMBER = 1, NOTHING_ALLOWED = 2;

struct Alternative {
  unsigned token;
  float logprob;
};
// Alternatives of a row at most.
constexpr unsigned ALTERNATIVES = 20;

constexpr unsigned LINEAR_BINS = 1024;
constexpr unsigned DIGIT_BINS = 2048;

// Whole numbers that ascend with the logits; the two zeros are one.
__device__ __forceinline__ unsigned key_of(const float logit) {
  unsigned bits = __float_as_uint(logit);
  if (bits == 0x80000000u) bits = 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(const unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
constexpr unsigned RULED_OUT = 0x007fffffu;  // -inf

// A token and how good it is in one number: of equal ones the lower id is the better. No token gives 0 or SICK.
__device__ __forceinline__ Mass rank_of(const float logit, const unsigned token) {
  return (Mass)key_of(logit) << 32 | ~token;
}
constexpr Mass SICK = ~0ull;

// What a token weighs: the exponential of its distance to the best one, nothing when it is below `floor`.
struct Scale {
  double best, temperature;
  Mass floor;

  __device__ __forceinline__ Mass operator()(const float logit) const {
    const double distance = __dadd_rn(logit, -best);
    // Surely below FAINTEST, and far cheaper.
    if (!(distance >= 1.001 * FAINTEST * temperature)) return 0;
    const Mass w = weight(temperature == 1.0 ? distance : __ddiv_rn(distance, temperature));
    return w >= floor ? w : 0;
  }
};

// Sums and maxima over a block. Every function returns in all threads, and its shared memory may be used again.
template <unsigned THREADS>
struct Team {
  static constexpr unsigned WARPS = THREADS / LANES;

  template <typename Join>
  static __device__ __forceinline__ Mass join(Mass value, Join join) {
    __shared__ Mass partial[WARPS];
#pragma unroll
    for (unsigned apart = LANES / 2; apart > 0; apart /= 2) {
      value = join(value, __shfl_xor_sync(WHOLE_WARP, value, apart));
    }
    if (threadIdx.x % LANES == 0) partial[threadIdx.x / LANES] = value;
    __syncthreads();
    value = partial[0];
    for (unsigned warp = 1; warp < WARPS; ++warp) value = join(value, partial[warp]);
    __syncthreads();
    return value;
  }

  static __device__ __forceinline__ Mass total(const Mass value) {
    return join(value, [](Mass a, Mass b) { return a + b; });
  }
  static __device__ __forceinline__ Mass highest(const Mass value) {
    return join(value, [](Mass a, Mass b) { return a > b ? a : b; });
  }
};

// The sum of the lanes below this one and of itself.
__device__ __forceinline__ Mass scan_warp(Mass value) {
  const unsigned lane = threadIdx.x % LANES;
#pragma unroll
  for (unsigned apart = 1; apart < LANES; apart *= 2) {
    const Mass lower = __shfl_sync(WHOLE_WARP, value, lane - apart);
    if (lane >= apart) value += lower;
  }
  return value;
}

// Counts and weights by bin, better tokens in lower bins. A weight's sum is kept in two words: a 64-bit atomic would be
// a loop of exchanges.
template <unsigned BINS>
struct Bins {
  unsigned count[BINS], low[BINS], high[BINS];

  template <unsigned THREADS>
  __device__ __forceinline__ void clear() {
    for (unsigned bin = threadIdx.x; bin < BINS; bin += THREADS) count[bin] = low[bin] = high[bin] = 0;
    __syncthreads();
  }

  __device__ __forceinline__ void add(const unsigned bin, const Mass mass) {
    atomicAdd(&count[bin], 1u);
    const unsigned part = (unsigned)mass;
    const unsigned before = atomicAdd(&low[bin], part);
    const unsigned carry = before + part < before;
    atomicAdd(&high[bin], (unsigned)(mass >> 32) + carry);
  }

  __device__ __forceinline__ Mass mass(const unsigned bin) const { return (Mass)high[bin] << 32 | low[bin]; }
};

// A bin, what it holds, and what is better than all of it.
struct Place {
  unsigned bin;
  Mass count, mass, count_before, mass_before;
};

// The bin where the running count (or mass) reaches `target`; what is better than all bins is already in `from`.
template <unsigned THREADS, unsigned BINS>
__device__ __noinline__ Place locate(const Bins<BINS>& bins, const Place from, const bool by_count, const Mass target) {
  constexpr unsigned EACH = BINS / THREADS;
  __shared__ Mass counts[THREADS / LANES], masses[THREADS / LANES];
  __shared__ Place found;
  const unsigned first = threadIdx.x * EACH, warp = threadIdx.x / LANES;
  Mass count = 0, mass = 0;
  for (unsigned bin = first; bin < first + EACH; ++bin) {
    count += bins.count[bin];
    mass += bins.mass(bin);
  }
  Mass count_before = scan_warp(count), mass_before = scan_warp(mass);
  if (threadIdx.x % LANES == LANES - 1) {
    counts[warp] = count_before;
    masses[warp] = mass_before;
  }
  __syncthreads();
  count_before += from.count_before - count;
  mass_before += from.mass_before - mass;
  for (unsigned w = 0; w < warp; ++w) {
    count_before += counts[w];
    mass_before += masses[w];
  }
  for (unsigned bin = first; bin < first + EACH; ++bin) {
    count = bins.count[bin];
    mass = bins.mass(bin);
    const Mass before = by_count ? count_before : mass_before;
    if (before < target && target <= before + (by_count ? count : mass)) {
      found = {bin, count, mass, count_before, mass_before};
    }
    count_before += count;
    mass_before += mass;
  }
  __syncthreads();
  const Place place = found;
  __syncthreads();
  return place;
}

// The worst logit that is kept, as the complement of its key so that lower is better; how many of the tokens that equal
// it are kept, by id; what each of them and what all kept tokens weigh.
struct Edge {
  unsigned key;
  Mass ties, tie, total;
};

template <unsigned THREADS>
struct Row {
  const float* logits;
  unsigned n;
  Scale scale;
  float bins_per_logit;

  __device__ __forceinline__ unsigned linear_bin(const float logit) const {
    return (unsigned)fminf(((float)scale.best - logit) * bins_per_logit, (float)(LINEAR_BINS - 1));
  }

  // Counts and weights of all tokens that weigh anything; what they weigh together and how many they are.
  __device__ __forceinline__ Place survey(Bins<LINEAR_BINS>& linear) const {
    linear.template clear<THREADS>();
    Mass count = 0, mass = 0;
    for (unsigned token = threadIdx.x; token < n; token += THREADS) {
      const float logit = logits[token];
      const Mass w = scale(logit);
      if (w == 0) continue;
      linear.add(linear_bin(logit), w);
      count += 1;
      mass += w;
    }
    count = Team<THREADS>::total(count);
    mass = Team<THREADS>::total(mass);
    return {0, count, mass, 0, 0};
  }

  __device__ __forceinline__ Mass total() const {
    Mass mass = 0;
    for (unsigned token = threadIdx.x; token < n; token += THREADS) mass += scale(logits[token]);
    return Team<THREADS>::total(mass);
  }

  // The shortest run of best tokens that are `target` many (or weigh `target`), from the survey in `linear`.
  __device__ __noinline__ Edge search(
      const Bins<LINEAR_BINS>& linear, Bins<DIGIT_BINS>& digits, const bool by_count, const Mass target) const {
    Place place = locate<THREADS>(linear, {0, 0, 0, 0, 0}, by_count, target);
    const unsigned bin = place.bin;
    unsigned prefix = 0;
    // Digits of 11, 11 and 10 bits, the highest first.
    for (unsigned shift = 21;; shift = shift > 10 ? shift - 11 : 0) {
      const unsigned above = shift == 0 ? 10 : shift + 11;
      digits.template clear<THREADS>();
      for (unsigned token = threadIdx.x; token < n; token += THREADS) {
        const float logit = logits[token];
        const unsigned key = ~key_of(logit);
        if ((Mass)key >> above != prefix || linear_bin(logit) != bin) continue;
        const Mass w = scale(logit);
        if (w > 0) digits.add(key >> shift & ((1u << (above - shift)) - 1), w);
      }
      __syncthreads();
      place = locate<THREADS>(digits, place, by_count, target);
      prefix = prefix << (above - shift) | place.bin;
      if (shift == 0) break;
    }
    const Mass tie = place.mass / place.count;
    const Mass ties = by_count ? target - place.count_before : (target - place.mass_before + tie - 1) / tie;
    return {prefix, ties, tie, place.mass_before + ties * tie};
  }

  // What a token weighs when it is better than the edge; `tied` where it is at the edge.
  __device__ __forceinline__ Mass kept(const unsigned token, const Edge& edge, bool& tied) const {
    const float logit = logits[token];
    const unsigned key = ~key_of(logit);
    tied = key == edge.key;
    return key < edge.key ? scale(logit) : 0;
  }

  // The token in whose weight `left` falls, walking the kept tokens by id.
  __device__ __forceinline__ unsigned walk(const Edge& edge, Mass left) const {
    constexpr unsigned WARPS = THREADS / LANES;
    __shared__ Mass masses[WARPS];
    __shared__ unsigned counts[WARPS];
    const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    unsigned first = 0, length = n;
    Mass ties = edge.ties;
    while (length > LANES) {
      const unsigned part = (length + WARPS - 1) / WARPS;
      const unsigned end = first + length;
      const unsigned from = min(first + warp * part, end), to = min(from + part, end);
      Mass mass = 0;
      unsigned count = 0;
      for (unsigned token = from + lane; token < to; token += LANES) {
        bool tied;
        mass += kept(token, edge, tied);
        count += tied;
      }
#pragma unroll
      for (unsigned apart = LANES / 2; apart > 0; apart /= 2) {
        mass += __shfl_xor_sync(WHOLE_WARP, mass, apart);
        count += __shfl_xor_sync(WHOLE_WARP, count, apart);
      }
      if (lane == 0) {
        masses[warp] = mass;
        counts[warp] = count;
      }
      __syncthreads();
      for (unsigned w = 0; w < WARPS; ++w) {
        const Mass in = counts[w] < ties ? counts[w] : ties;
        const Mass here = masses[w] + in * edge.tie;
        if (left < here) {
          first += w * part;
          break;
        }
        left -= here;
        ties -= in;
      }
      length = min(part, end - first);
      __syncthreads();
    }
    bool tied = false;
    Mass mass = 0;
    if (lane < length) mass = kept(first + lane, edge, tied);
    const unsigned votes = __ballot_sync(WHOLE_WARP, tied);
    if (tied && (Mass)__popc(votes & ((1u << lane) - 1)) < ties) mass = edge.tie;
    const unsigned beyond = __ballot_sync(WHOLE_WARP, left < scan_warp(mass));
    return first + __ffs(beyond) - 1;
  }
};

// Over a row: the best token's rank, SICK where there is a NaN or +inf.
template <unsigned THREADS>
__device__ __forceinline__ Mass best_of(const float* logits, const unsigned n) {
  Mass best = 0;
#pragma unroll 4
  for (unsigned token = threadIdx.x; token < n; token += THREADS) {
    const float logit = logits[token];
    const Mass rank = logit < __uint_as_float(0x7f800000u) ? rank_of(logit, token) : SICK;
    best = rank > best ? rank : best;
  }
  return Team<THREADS>::highest(best);
}

// Bias, mask and penalties: the row as it is drawn from.
template <unsigned THREADS>
__device__ __noinline__ void change(
    const Record& record, const unsigned* lists, const float* logits, float* changed, const unsigned n) {
  const float ruled_out = __uint_as_float(0xff800000u);
  const unsigned* const mask = lists + record.mask;
  const auto allowed = [&](unsigned token) {
    return !(record.flags & MASKED) || (token / 32 < record.masks && mask[token / 32] >> token % 32 & 1);
  };
  for (unsigned token = threadIdx.x; token < n; token += THREADS) {
    changed[token] = allowed(token) ? logits[token] : ruled_out;
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < record.biases; i += THREADS) {
    const unsigned token = lists[record.bias + 2 * i];
    const float bias = __uint_as_float(lists[record.bias + 2 * i + 1]);
    if (token < n && allowed(token)) changed[token] = __fadd_rn(logits[token], bias);
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < record.seens; i += THREADS) {
    const unsigned token = lists[record.seen + 2 * i], count = lists[record.seen + 2 * i + 1];
    if (token >= n) continue;
    float logit = changed[token];
    logit = logit > 0.0f ? __fdiv_rn(logit, record.repetition) : __fmul_rn(logit, record.repetition);
    if (count > 0) {
      const float penalty = __fadd_rn(__fmul_rn(record.frequency, (float)count), record.presence);
      logit = __fadd_rn(logit, -penalty);
    }
    changed[token] = logit;
  }
  __syncthreads();
}

// Draws from one row; the error, if any.
template <unsigned THREADS>
__device__ __forceinline__ unsigned choose(
    const Record& record, const float* logits, Mass best, const unsigned n, const bool is_changed, unsigned& token) {
  __shared__ Bins<LINEAR_BINS> linear;
  __shared__ Bins<DIGIT_BINS> digits;
  if (is_changed) best = best_of<THREADS>(logits, n);
  if (best == SICK) return NOT_A_NUMBER;
  if (best >> 32 == RULED_OUT) return NOTHING_ALLOWED;
  token = ~(unsigned)best;
  if (record.temperature <= 0.0f) return 0;

  const Mass floor = (Mass)record.floor[1] << 32 | record.floor[0];
  const double share = __longlong_as_double((long long)((Mass)record.share[1] << 32 | record.share[0]));
  const float temperature = record.temperature;
  const Row<THREADS> row{logits, n, {logit_of((unsigned)(best >> 32)), temperature, floor},
                         (float)LINEAR_BINS / (-(float)FAINTEST * temperature)};
  const bool by_count = record.top_k > 0 && record.top_k < n, by_mass = share < 1.0;
  Edge edge = {0xffffffffu, 0, 0, 0};
  if (by_count || by_mass) {
    const Place all = row.survey(linear);
    edge.total = all.mass;
    if (by_count && record.top_k < all.count) edge = row.search(linear, digits, true, record.top_k);
    if (by_mass) {
      Mass wanted = (Mass)ceil(__dmul_rn((double)edge.total, share));
      wanted = wanted < 1 ? 1 : wanted > edge.total ? edge.total : wanted;
      edge = row.search(linear, digits, false, wanted);
    }
  } else {
    edge.total = row.total();
  }
  const auto random = random_bits(record.seed[0], record.seed[1], record.choice, record.position);
  token = row.walk(edge, below(random, edge.total));
  return 0;
}

template <unsigned THREADS>
__device__ __forceinline__ void sample_row(
    const Record& record, const unsigned* lists, const float* logits, float* changed, const unsigned n,
    unsigned& drawn, Outcome& outcome, Alternative* alternatives) {
  const Mass best = best_of<THREADS>(logits, n);
  unsigned token = record.forced, error = 0;
  if (best == SICK || best >> 32 == RULED_OUT) {
    error = NOT_A_NUMBER;
  } else if (!(record.flags & FORCED)) {
    const bool is_changed = record.flags & CHANGED;
    if (is_changed) change<THREADS>(record, lists, logits, changed, n);
    error = choose<THREADS>(record, is_changed ? changed : logits, best, n, is_changed, token);
  }
  if (error) token = 0;
  if (threadIdx.x == 0) {
    drawn = token;
    outcome = {token, error, 0.0f, 0};
  }
  if (error || !(record.flags & REPORTED)) return;

  // Of the row as it came.
  const double highest = logit_of((unsigned)(best >> 32));
  const Row<THREADS> row{logits, n, {highest, 1.0, 1}, 0.0f};
  const double log_total = log(__dmul_rn((double)row.total(), 1.0 / (double)UNIT));
  const auto logprob = [&](float logit) {
    return (float)__dadd_rn(__dadd_rn((double)logit, -highest), -log_total);
  };
  // Each thread holds the best of its tokens; the one whose is taken looks for its next.
  Mass mine = 0;
  const auto next = [&](Mass under) {
    mine = 0;
    for (unsigned t = threadIdx.x; t < n; t += THREADS) {
      const float logit = logits[t];
      const Mass rank = rank_of(logit, t);
      if (rank < under && rank > mine && key_of(logit) > RULED_OUT) mine = rank;
    }
  };
  unsigned count = 0;
  if (record.alternatives > 0) next(SICK);
  for (; count < record.alternatives && count < ALTERNATIVES; ++count) {
    const Mass taken = Team<THREADS>::highest(mine);
    if (taken == 0) break;
    if (mine == taken) {
      alternatives[count] = {~(unsigned)taken, logprob(logit_of((unsigned)(taken >> 32)))};
      next(taken);
    }
  }
  if (threadIdx.x == 0) {
    outcome.logprob = token < n ? logprob(logits[token]) : __uint_as_float(0xff800000u);
    outcome.alternatives = count;
  }
}

// Row i of `records` writes `drawn[i]`, `outcomes[i]` and `alternatives[20 i..]`; `changed` is room for as many rows as
// there are records. After an error the token is 0.
template <unsigned THREADS>
__device__ __forceinline__ void sample_rows(
    const unsigned rows, const Record* records, const unsigned* lists, const float* logits, float* changed,
    unsigned* drawn, Outcome* outcomes, Alternative* alternatives, const unsigned n) {
  const unsigned i = blockIdx.x;
  if (i >= rows) return;
  const Record& record = records[i];
  sample_row<THREADS>(record, lists, logits + (size_t)record.row * n, changed + (size_t)i * n, n, drawn[i],
                      outcomes[i], alternatives + (size_t)i * ALTERNATIVES);
}

extern "C" __global__ void __launch_bounds__(1024)
    sample(const unsigned* rows, const Record* records, const unsigned* lists, const float* logits, float* changed,
           unsigned* drawn, Outcome* outcomes, Alternative* alternatives, unsigned n) {
  sample_rows<1024>(*rows, records, lists, logits, changed, drawn, outcomes, alternatives, n);
}
