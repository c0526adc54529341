//! Attention over pages, in vectors.
//!
//! A task takes a few rows of one sequence with query heads that share keys and values, and goes through the blocks
//! that those rows see once. Per block and query: 16 scores in one register, a running maximum, the weights of the
//! block, and the values added to the running output. Bytes moved: keys and values once for up to 16 queries. Measured
//! with 32 heads of 128 on 8 of keys, bf16, two cores of a Xeon with AVX-512: 28 to 29 GB/s of keys and values for
//! single tokens (at one sequence of 8192 positions and 32 of 512), what memory gives there; 162 GFLOP/s for a prompt
//! of 512.
//!
//! The order of sums is fixed by positions alone, so bits depend neither on how a prompt is cut nor on what else is in
//! the batch nor on the number of threads: blocks in ascending order inside a segment of [`SEGMENT`] positions, then
//! segments in ascending order, each scaled to the larger maximum. When there are fewer rows than threads, segments
//! are tasks of their own and are joined afterwards, with the same operations.

#![allow(unsafe_op_in_unsafe_fn)]

use std::ops::Range;

use crate::attention::Job;
use crate::buffer::{Aligned, Shared};
use crate::cpu::lanes::{Kernel, Lanes, dispatch};
use crate::cpu::product::{Bf16, F16, F32, Format};
use crate::kv::KvStore;
use crate::paged::{BLOCK, Span};
use crate::{Context, Error};

/// Positions of a segment. Short in tests, so that short sequences have several.
const SEGMENT: usize = if cfg!(test) { 32 } else { 1024 };
/// Queries of a task.
const QUERIES: usize = 16;
/// The largest head dimension, and what it must be a multiple of.
const MOST_DIM: usize = 256;

/// Whether heads of this dimension are done here.
pub(crate) fn offers(dim: usize) -> bool {
    dim.is_multiple_of(16) && (16..=MOST_DIM).contains(&dim)
}

/// Memory that attention keeps between calls.
pub(crate) struct Memory {
    /// Where the tasks of each span begin.
    starts: Vec<usize>,
    /// Results of segments: per row, head and segment the output, its maximum and its sum of weights.
    partial: Aligned<f32>,
}

impl Memory {
    pub fn empty() -> Self {
        Self { starts: Vec::new(), partial: Aligned::empty() }
    }
}

/// Attention of all rows of the job into `out`.
pub(crate) fn run(
    ctx: &Context,
    memory: &mut Memory,
    job: &Job<'_>,
    qkv: &[f32],
    out: &mut [f32],
) -> Result<(), Error> {
    match &job.kv.store {
        KvStore::Bf16(all) => typed::<Bf16>(ctx, memory, job, all, qkv, out),
        KvStore::F16(all) => typed::<F16>(ctx, memory, job, all, qkv, out),
        KvStore::F32(all) => typed::<F32>(ctx, memory, job, all, qkv, out),
    }
}

/// How the queries of a call are divided.
#[derive(Clone, Copy)]
struct Split {
    /// Query heads of a task, and how many such groups share keys and values.
    heads: usize,
    groups: usize,
    /// Rows of a task.
    rows: usize,
    /// Whether segments are tasks, and the most that a sequence has.
    segments: Option<usize>,
}

impl Split {
    fn tasks(&self, job: &Job<'_>, span: &Span) -> usize {
        let tiles = (span.rows as usize).div_ceil(self.rows);
        let segments =
            self.segments.map_or(1, |_| (span.context as usize).div_ceil(SEGMENT) - first_segment(job, span));
        tiles * job.heads.kv * self.groups * segments
    }
}

fn first_segment(job: &Job<'_>, span: &Span) -> usize {
    job.seen(span, 0).start / SEGMENT
}

fn typed<F: Format>(
    ctx: &Context,
    memory: &mut Memory,
    job: &Job<'_>,
    cache: &[F::Unit],
    qkv: &[f32],
    out: &mut [f32],
) -> Result<(), Error> {
    let (heads, spans) = (job.heads, job.pages.spans);
    let shared = heads.q / heads.kv;
    let per_task = shared.min(QUERIES);
    let mut split = Split {
        heads: per_task,
        groups: shared.div_ceil(per_task),
        rows: (QUERIES / per_task).max(1),
        segments: None,
    };
    let rows = job.pages.positions.len();
    let context = spans.iter().map(|span| span.context as usize).max().unwrap_or(0);
    let whole: usize = spans.iter().map(|span| split.tasks(job, span)).sum();
    let row_len = heads.dim + 16;
    if whole < 2 * ctx.threads() && context > SEGMENT && ctx.threads() > 1 {
        let segments = context.div_ceil(SEGMENT);
        split.segments = Some(segments);
        memory.partial.reserve(rows * heads.q * segments * row_len)?;
    }
    memory.starts.clear();
    let mut tasks = 0;
    for span in spans {
        memory.starts.push(tasks);
        tasks += split.tasks(job, span);
    }
    let (starts, to) = (&memory.starts, Shared::new(out));
    let partial = split.segments.map(|segments| (Shared::new(&mut memory.partial), segments));
    ctx.run(tasks, |task| {
        let index = starts.partition_point(|start| *start <= task) - 1;
        let span = &spans[index];
        let tiles = (span.rows as usize).div_ceil(split.rows);
        let mut rest = task - starts[index];
        let tile = rest % tiles;
        rest /= tiles;
        let (kv_head, group) = (rest / split.groups % heads.kv, rest % split.groups);
        rest /= split.groups * heads.kv;
        let first = first_segment(job, span);
        let last = (span.context as usize).div_ceil(SEGMENT);
        let segments = if partial.is_some() { first + rest..first + rest + 1 } else { first..last };
        let rows = tile * split.rows..(span.rows as usize).min((tile + 1) * split.rows);
        let head = kv_head * shared + group * split.heads;
        let queries = Queries {
            rows,
            heads: head..(head + split.heads).min((kv_head + 1) * shared),
            kv_head,
            segments,
        };
        dispatch(ctx, Attend::<'_, F> { job, span, cache, qkv, queries, out: to, partial });
    })?;
    let Some((partial, segments)) = partial else { return Ok(()) };
    ctx.run(rows * heads.q, |task| {
        let (row, head) = (task / heads.q, task % heads.q);
        let behind = spans.partition_point(|span| span.row as usize <= row);
        // A row between spans belongs to nobody.
        if let Some(span) = spans[..behind].last().filter(|span| row < (span.row + span.rows) as usize) {
            dispatch(ctx, Join { job, span, row, head, out: to, partial, segments });
        }
    })
}

/// The queries of a task: rows of its span, heads of the model.
struct Queries {
    rows: Range<usize>,
    heads: Range<usize>,
    kv_head: usize,
    segments: Range<usize>,
}

struct Attend<'a, F: Format> {
    job: &'a Job<'a>,
    span: &'a Span,
    cache: &'a [F::Unit],
    qkv: &'a [f32],
    queries: Queries,
    out: Shared<f32>,
    partial: Option<(Shared<f32>, usize)>,
}

/// What is known of some queries after some positions.
struct State {
    /// Outputs, not yet divided by the sum of weights.
    out: [f32; QUERIES * MOST_DIM],
    /// The sum of weights in 16 lanes.
    sums: [f32; QUERIES * 16],
    max: [f32; QUERIES],
}

impl State {
    fn new() -> Self {
        Self { out: [0.0; QUERIES * MOST_DIM], sums: [0.0; QUERIES * 16], max: [f32::NEG_INFINITY; QUERIES] }
    }
}

impl<F: Format> Kernel for Attend<'_, F> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let dim = self.job.heads.dim;
        let heads = self.queries.heads.len();
        let count = self.queries.rows.len() * heads;
        let mut state = State::new();
        // Of the segments before: output, maximum, sum.
        let mut before = [0.0f32; QUERIES * MOST_DIM];
        let mut totals = [(f32::NEG_INFINITY, 0.0f32); QUERIES];
        let mut begun = [false; QUERIES];
        for segment in self.queries.segments.clone() {
            state.max.fill(f32::NEG_INFINITY);
            state.sums[..count * 16].fill(0.0);
            state.out[..count * dim].fill(0.0);
            self.segment::<L>(&mut state, segment * SEGMENT..(segment + 1) * SEGMENT);
            for query in 0..count {
                let i = self.queries.rows.start + query / heads;
                let seen = self.job.seen(self.span, i);
                if seen.start >= (segment + 1) * SEGMENT || seen.end <= segment * SEGMENT {
                    continue;
                }
                let out = state.out.as_ptr().add(query * dim);
                let sum = L::sum(L::load(state.sums.as_ptr().add(query * 16)));
                let total = (state.max[query], sum);
                if let Some((partial, segments)) = self.partial {
                    let row = self.span.row as usize + i;
                    let head = self.queries.heads.start + query % heads;
                    let at = (row * self.job.heads.q + head) * segments + segment;
                    let to = partial.slice(at * (dim + 16), dim + 2);
                    std::ptr::copy_nonoverlapping(out, to.as_mut_ptr(), dim);
                    (to[dim], to[dim + 1]) = total;
                } else {
                    let before = before.as_mut_ptr().add(query * dim);
                    join::<L>(&mut begun[query], before, &mut totals[query], out, total, dim);
                }
            }
        }
        if self.partial.is_none() {
            for query in 0..count {
                let row = self.span.row as usize + self.queries.rows.start + query / heads;
                let head = self.queries.heads.start + query % heads;
                let out = self.out.at((row * self.job.heads.q + head) * dim);
                divide::<L>(before.as_ptr().add(query * dim), totals[query].1, out, dim);
            }
        }
    }
}

impl<F: Format> Attend<'_, F> {
    /// All queries over those of the given positions that each sees.
    #[inline(always)]
    unsafe fn segment<L: Lanes>(&self, state: &mut State, positions: Range<usize>) {
        let (rows, heads) = (&self.queries.rows, &self.queries.heads);
        let shape = self.job.kv.shape();
        let count = rows.len() * heads.len();
        let (first, last) = (self.job.seen(self.span, rows.start), self.job.seen(self.span, rows.end - 1));
        let from = positions.start.max(first.start) / BLOCK;
        let to = positions.end.min(last.end).div_ceil(BLOCK);
        for index in from..to {
            let start = index * BLOCK;
            let block = self.job.block(self.span, start);
            let keys = self.cache.as_ptr().add(shape.keys(self.job.layer, block, self.queries.kv_head));
            let values = self.cache.as_ptr().add(shape.values(self.job.layer, block, self.queries.kv_head));
            let mut query = 0;
            if last.start <= start && first.end >= start + BLOCK {
                // All queries see the whole block.
                while query < count {
                    query += match (count - query).min(L::ROWS) {
                        8.. => self.block::<L, 8>(state, query, keys, values),
                        4.. => self.block::<L, 4>(state, query, keys, values),
                        2.. => self.block::<L, 2>(state, query, keys, values),
                        _ => self.block::<L, 1>(state, query, keys, values),
                    };
                }
                continue;
            }
            while query < count {
                let seen = self.job.seen(self.span, rows.start + query / heads.len());
                let some = seen.start.clamp(start, start + BLOCK) - start
                    ..seen.end.clamp(start, start + BLOCK) - start;
                if some.len() == BLOCK {
                    self.block::<L, 1>(state, query, keys, values);
                } else if !some.is_empty() {
                    self.some::<L>(state, query, keys, values, some);
                }
                query += 1;
            }
        }
    }

    /// Where a query of the task begins.
    #[inline(always)]
    unsafe fn query(&self, query: usize) -> *const f32 {
        let heads = self.queries.heads.len();
        let row = self.span.row as usize + self.queries.rows.start + query / heads;
        let head = self.queries.heads.start + query % heads;
        self.qkv.as_ptr().add(row * self.job.heads.width() + head * self.job.heads.dim)
    }

    /// `R` queries from `query` on with one whole block.
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize>(
        &self,
        state: &mut State,
        query: usize,
        keys: *const F::Unit,
        values: *const F::Unit,
    ) -> usize {
        let dim = self.job.heads.dim;
        let queries: [*const f32; R] = std::array::from_fn(|r| self.query(query + r));
        let scores = scores::<L, F, R>(keys, queries, dim);
        let mut weights = [[0.0f32; BLOCK]; R];
        for r in 0..R {
            let scores = L::mul(scores[r], L::splat(self.job.scale));
            let new = raise::<L>(state, query + r, scores, dim);
            let sums = state.sums.as_mut_ptr().add((query + r) * 16);
            L::store(sums, L::add(L::load(sums), new));
            L::store(weights[r].as_mut_ptr(), new);
        }
        let out = state.out.as_mut_ptr().add(query * dim);
        // As many sums in flight as there are registers.
        if L::ROWS == 8 && R == 4 && dim.is_multiple_of(32) {
            add_values::<L, F, R, 2>(values, &weights, out, dim);
        } else if L::ROWS == 8 && R <= 2 && dim.is_multiple_of(64) {
            add_values::<L, F, R, 4>(values, &weights, out, dim);
        } else {
            add_values::<L, F, R, 1>(values, &weights, out, dim);
        }
        R
    }

    /// One query with the positions `some` of a block; the others may hold anything.
    #[inline(always)]
    unsafe fn some<L: Lanes>(
        &self,
        state: &mut State,
        query: usize,
        keys: *const F::Unit,
        values: *const F::Unit,
        some: Range<usize>,
    ) {
        let dim = self.job.heads.dim;
        let [scores] = scores::<L, F, 1>(keys, [self.query(query)], dim);
        let mut lanes = [0.0f32; BLOCK];
        L::store(lanes.as_mut_ptr(), L::mul(scores, L::splat(self.job.scale)));
        lanes[..some.start].fill(f32::NEG_INFINITY);
        lanes[some.end..].fill(f32::NEG_INFINITY);
        let new = raise::<L>(state, query, L::load(lanes.as_ptr()), dim);
        L::store(lanes.as_mut_ptr(), new);
        lanes[..some.start].fill(0.0);
        lanes[some.end..].fill(0.0);
        let sums = state.sums.as_mut_ptr().add(query * 16);
        L::store(sums, L::add(L::load(sums), L::load(lanes.as_ptr())));
        for d in (0..dim).step_by(16) {
            let out = state.out.as_mut_ptr().add(query * dim + d);
            let mut sum = L::load(out);
            for offset in some.clone() {
                let (even, odd) = F::rows::<L>(values, offset / 2, d, dim);
                let value = if offset % 2 == 0 { even } else { odd };
                sum = L::fma(L::splat(lanes[offset]), value, sum);
            }
            L::store(out, sum);
        }
    }
}

/// Products of `R` queries with the 16 keys of a block: a chain over the even numbers of a head, one over the odd.
#[inline(always)]
unsafe fn scores<L: Lanes, F: Format, const R: usize>(
    keys: *const F::Unit,
    queries: [*const f32; R],
    dim: usize,
) -> [L::V; R] {
    let (mut evens, mut odds) = ([L::splat(0.0); R], [L::splat(0.0); R]);
    for pair in 0..dim / 2 {
        let (even, odd) = F::pair::<L>(keys.add(pair * 2 * BLOCK));
        for r in 0..R {
            evens[r] = L::fma(L::splat(*queries[r].add(2 * pair)), even, evens[r]);
            odds[r] = L::fma(L::splat(*queries[r].add(2 * pair + 1)), odd, odds[r]);
        }
    }
    std::array::from_fn(|r| L::add(evens[r], odds[r]))
}

/// The weights of a block for a query, after everything known of the query was scaled to the new maximum. Scaling is
/// left out where the maximum stays: it would multiply by exactly one.
#[inline(always)]
unsafe fn raise<L: Lanes>(state: &mut State, query: usize, scores: L::V, dim: usize) -> L::V {
    let top = L::top(scores);
    if top > state.max[query] {
        let scale = L::exp(L::splat(state.max[query] - top));
        state.max[query] = top;
        let sums = state.sums.as_mut_ptr().add(query * 16);
        L::store(sums, L::mul(L::load(sums), scale));
        for d in (0..dim).step_by(16) {
            let out = state.out.as_mut_ptr().add(query * dim + d);
            L::store(out, L::mul(L::load(out), scale));
        }
    }
    L::exp(L::sub(scores, L::splat(state.max[query])))
}

/// Adds the values of a block, weighted, to the outputs of `R` queries: positions ascending in one chain each, `C`
/// registers of a head at a time.
#[inline(always)]
unsafe fn add_values<L: Lanes, F: Format, const R: usize, const C: usize>(
    values: *const F::Unit,
    weights: &[[f32; BLOCK]; R],
    out: *mut f32,
    dim: usize,
) {
    for d in (0..dim).step_by(16 * C) {
        let mut sums = [[L::splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = L::load(out.add(r * dim + d + 16 * c));
            }
        }
        for pair in 0..BLOCK / 2 {
            for c in 0..C {
                let (even, odd) = F::rows::<L>(values, pair, d + 16 * c, dim);
                for r in 0..R {
                    sums[r][c] = L::fma(L::splat(weights[r][2 * pair]), even, sums[r][c]);
                    sums[r][c] = L::fma(L::splat(weights[r][2 * pair + 1]), odd, sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                L::store(out.add(r * dim + d + 16 * c), sums[r][c]);
            }
        }
    }
}

/// Adds a segment, with its maximum and sum, to those before it.
#[inline(always)]
unsafe fn join<L: Lanes>(
    begun: &mut bool,
    before: *mut f32,
    total: &mut (f32, f32),
    out: *const f32,
    (max, sum): (f32, f32),
    dim: usize,
) {
    if !*begun {
        *begun = true;
        *total = (max, sum);
        std::ptr::copy_nonoverlapping(out, before, dim);
        return;
    }
    let top = if max > total.0 { max } else { total.0 };
    let (old, new) = (L::exp(L::splat(total.0 - top)), L::exp(L::splat(max - top)));
    let sums = L::fma(L::splat(sum), new, L::mul(L::splat(total.1), old));
    let mut lanes = [0.0f32; 16];
    L::store(lanes.as_mut_ptr(), sums);
    *total = (top, lanes[0]);
    for d in (0..dim).step_by(16) {
        let joined = L::fma(L::load(out.add(d)), new, L::mul(L::load(before.add(d)), old));
        L::store(before.add(d), joined);
    }
}

#[inline(always)]
unsafe fn divide<L: Lanes>(from: *const f32, sum: f32, to: *mut f32, dim: usize) {
    for d in (0..dim).step_by(16) {
        L::store(to.add(d), L::div(L::load(from.add(d)), L::splat(sum)));
    }
}

/// Joins the segments of one head of one row.
struct Join<'a> {
    job: &'a Job<'a>,
    span: &'a Span,
    row: usize,
    head: usize,
    out: Shared<f32>,
    partial: Shared<f32>,
    segments: usize,
}

impl Kernel for Join<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let dim = self.job.heads.dim;
        let seen = self.job.seen(self.span, self.row - self.span.row as usize);
        let mut before = [0.0f32; MOST_DIM];
        let (mut begun, mut total) = (false, (f32::NEG_INFINITY, 0.0));
        for segment in seen.start / SEGMENT..seen.end.div_ceil(SEGMENT) {
            let at = (self.row * self.job.heads.q + self.head) * self.segments + segment;
            let part = self.partial.slice(at * (dim + 16), dim + 2);
            let of_part = (part[dim], part[dim + 1]);
            join::<L>(&mut begun, before.as_mut_ptr(), &mut total, part.as_ptr(), of_part, dim);
        }
        divide::<L>(
            before.as_ptr(),
            total.1,
            self.out.at((self.row * self.job.heads.q + self.head) * dim),
            dim,
        );
    }
}
