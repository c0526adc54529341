//! A step allocates nothing of its own once the largest has been seen. The only test of its binary, for it counts all
//! threads.
//!
//! candle allocates a list of two dimensions each time an operation writes a tensor in place (it sorts them to see
//! whether the tensor overlaps itself); these are told apart by their size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_kernels::Context;
use hearth_kernels::paged::Span;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::decoder::{Decoder, Options};
use hearth_models::step::Step;

struct Counting;

static LARGE: AtomicUsize = AtomicUsize::new(0);
static SMALL: AtomicUsize = AtomicUsize::new(0);
/// Four dimensions with their strides, the least a list of them has room for.
const LIST: usize = 64;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let counter = if layout.size() <= LIST { &SMALL } else { &LARGE };
        counter.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the allocator's contract, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A prompt of some rows, and a sequence that decodes.
fn step(rows: u32) -> Step {
    let mut step = Step::default();
    for position in 0..rows {
        step.tokens.push(3 + position);
        step.positions.push(position);
        step.slots.push(position);
    }
    step.spans.push(Span { row: 0, rows, table: 0, context: rows });
    step.tables.extend(0..rows.div_ceil(16));
    step.spans.push(Span { row: rows, rows: 1, table: step.tables.len() as u32, context: 33 });
    step.tables.extend([8, 9, 10]);
    step.tokens.push(7);
    step.positions.push(32);
    step.slots.push(160);
    step.logits = vec![rows - 1, rows];
    step
}

#[test]
fn a_step_allocates_nothing_after_the_first() {
    // Heads of 16 values, as all real widths are multiples of it; others take the plain path, which allocates.
    for name in ["mistral-v0.1", "mixtral-8x7b-v0.1", "deepseek-coder-33b", "qwen2.5-coder-7b"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name);
        let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{e}"));
        let options = Options { quantize: None, rows: 64, logits: 4, context: 128, blocks: 16, kv: None };
        let ctx = Context::cpu(None).unwrap();
        let mut decoder =
            Decoder::load(&ctx, &checkpoint, &options, &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
        let steps = [step(63), step(5), step(1), step(40)];
        for step in &steps {
            decoder.forward(step).unwrap_or_else(|e| panic!("{e}"));
        }
        let mut round = || {
            let before = [&LARGE, &SMALL].map(|counter| counter.load(Ordering::Relaxed));
            for step in &steps {
                decoder.forward(step).unwrap_or_else(|e| panic!("{e}"));
            }
            let after = [&LARGE, &SMALL].map(|counter| counter.load(Ordering::Relaxed));
            [after[0] - before[0], after[1] - before[1]]
        };
        // The test runner's own thread may allocate in between, which only adds: the least of three is the decoder's.
        let rounds = [round(), round(), round()];
        let [large, small] = [0, 1].map(|i| rounds.iter().map(|round| round[i]).min().unwrap_or_default());
        assert_eq!(large, 0, "{name}: allocations in {} steps", steps.len());
        // Nine operations a layer write a tensor, three more a step; a mixture has one less that does.
        let writes = steps.len() * (3 + 9 * checkpoint.spec().layers);
        assert!(small <= writes, "{name}: {small} small allocations in {writes} operations");
    }
}
