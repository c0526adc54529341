//! A step allocates nothing of its own once the largest one was seen. What candle allocates when it writes a tensor in
//! place is allowed for: a list of at most four dimensions, 64 bytes, an operation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use hearth_kernels::paged::{BLOCK, Pages, Span};
use hearth_kernels::{
    Activation, Context, Heads, Isa, KvCache, KvShape, RopeTable, Routes, View, Weight, Write, attention,
    embed, experts, gate, linear, linear_rows, rms_norm, rope_store, route,
};

struct Counting;

/// Allocations up to 64 bytes, and larger ones.
static ALLOCATIONS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

fn allocations() -> [usize; 2] {
    [0, 1].map(|size: usize| ALLOCATIONS[size].load(Ordering::Relaxed))
}

/// Operations of a step that write a tensor.
const WRITES: usize = 11;

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS[usize::from(layout.size() > 64)].fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const ROWS: usize = 40;
const WIDTH: usize = 96;
const FFN: usize = 160;
const EXPERTS: usize = 4;
const HEADS: Heads = Heads { q: 4, kv: 2, dim: 32 };

struct Layer {
    ctx: Context,
    table: Weight,
    qkv: Weight,
    gate_up: Vec<Weight>,
    down: Vec<Weight>,
    router: Weight,
    norm: Tensor,
    rope: RopeTable,
    kv: KvCache,
    routes: Routes,
    tensors: [Tensor; 7],
}

impl Layer {
    fn new(threads: usize) -> Self {
        let ctx = Context::cpu_with(Isa::best(), threads).unwrap();
        let pack = |rows: usize, cols: usize| {
            let bytes: Vec<u8> =
                (0..rows * cols * 2).map(|i| if i % 2 == 0 { i as u8 } else { 0x3c }).collect();
            Weight::pack(&ctx, &[View { dtype: DType::BF16, rows, cols, bytes: &bytes }]).unwrap()
        };
        let tensor = |width| Tensor::zeros((ROWS, width), DType::F32, &Device::Cpu).unwrap();
        let widths = [WIDTH, HEADS.width(), HEADS.q * HEADS.dim, 2 * FFN, FFN, EXPERTS, WIDTH];
        let shape = KvShape { layers: 1, kv_heads: 2, head_dim: 32, blocks: 8, dtype: DType::BF16 };
        Self {
            table: pack(50, WIDTH),
            qkv: pack(HEADS.width(), WIDTH),
            gate_up: (0..EXPERTS).map(|_| pack(2 * FFN, WIDTH)).collect(),
            down: (0..EXPERTS).map(|_| pack(WIDTH, FFN)).collect(),
            router: pack(EXPERTS, WIDTH),
            norm: Tensor::ones(WIDTH, DType::F32, &Device::Cpu).unwrap(),
            rope: RopeTable::new(&ctx, &[0.1; 16], 1.0, 200).unwrap(),
            kv: KvCache::new(&ctx, shape).unwrap(),
            routes: Routes::new(ROWS, EXPERTS, 2),
            tensors: widths.map(tensor),
            ctx,
        }
    }

    /// Every operation once, on the first `rows` rows.
    fn step(&mut self, rows: usize) {
        let Self { ctx, kv, routes, .. } = self;
        let [x, qkv, attended, both, bent, logits, normed] = &self.tensors;
        let ids = [7; ROWS];
        let positions: [u32; ROWS] = std::array::from_fn(|i| i as u32);
        let spans = [Span { row: 0, rows: rows as u32, table: 0, context: rows as u32 }];
        let tables = [3, 1, 2];
        let slots: [u32; ROWS] =
            std::array::from_fn(|i| tables[i / BLOCK] * BLOCK as u32 + (i % BLOCK) as u32);
        let pages = Pages {
            positions: &positions[..rows],
            slots: &slots[..rows],
            spans: &spans,
            tables: &tables[..rows.div_ceil(BLOCK)],
        };
        embed(ctx, &self.table, &ids[..rows], 2.0, x).unwrap();
        linear(ctx, x, rows, &self.qkv, None, qkv, Write::Set).unwrap();
        linear_rows(ctx, x, &[0], &self.qkv, None, qkv, Write::Set).unwrap();
        rope_store(ctx, qkv, HEADS, &self.rope, &pages, kv, 0).unwrap();
        attention(ctx, qkv, HEADS, &pages, kv, 0, 0.2, Some(30), attended).unwrap();
        linear(ctx, x, rows, &self.gate_up[0], None, both, Write::Set).unwrap();
        gate(ctx, both, rows, Activation::GeluTanh, bent).unwrap();
        linear(ctx, x, rows, &self.router, None, logits, Write::Set).unwrap();
        route(ctx, logits, rows, EXPERTS, 2, true, routes).unwrap();
        linear(ctx, bent, rows, &self.down[0], None, x, Write::Add).unwrap();
        rms_norm(ctx, x, rows, &self.norm, 1e-5, false, normed).unwrap();
        experts(ctx, normed, rows, routes, &self.gate_up, &self.down, Activation::Silu, x, Write::Add)
            .unwrap();
    }
}

#[test]
fn steps_after_the_largest_allocate_nothing() {
    for threads in [1, 3] {
        let mut layer = Layer::new(threads);
        layer.step(ROWS);
        layer.step(ROWS);
        // The fewest of some rounds: the threads of the test harness allocate now and then, too.
        let mut fewest = [usize::MAX; 2];
        for _ in 0..8 {
            let before = allocations();
            for rows in [1, ROWS, 2, 17, 1] {
                layer.step(rows);
            }
            let after = allocations();
            fewest = [0, 1].map(|size| fewest[size].min(after[size] - before[size]));
        }
        assert_eq!(fewest[1], 0, "{threads} threads");
        assert!(fewest[0] <= 5 * WRITES, "{threads} threads: {}", fewest[0]);
    }
}
