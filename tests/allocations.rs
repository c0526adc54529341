//! The loop allocates nothing once it is warm. The only test of its binary, for it counts all threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{FutureExt, StreamExt};
use hearth::engine::executor::Capacity;
use hearth::engine::handle::{Config, Engine};
use hearth::engine::request::{Request, Sampling};
use hearth::engine::scripted::Scripted;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
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

#[test]
fn a_thousand_warm_steps_of_thirty_two_sequences_allocate_nothing() {
    let capacity = Capacity {
        blocks: 4000,
        block_size: 16,
        rows: 64,
        logits: 64,
        context: 2048,
        vocab: 32_000,
        strict: false,
    };
    for overlaps in [false, true] {
        let scripted = Scripted::new(capacity).unchecked();
        let scripted = if overlaps { scripted.overlapping() } else { scripted };
        let (handle, mut engine) = Engine::inline(Box::new(scripted), Config::default());
        let penalised = Sampling { presence_penalty: 0.5, temperature: 1.0, ..Sampling::default() };
        let mut streams: Vec<_> = (0..32)
            .map(|salt| {
                let sampling = if salt % 2 == 0 { Sampling::default() } else { penalised.clone() };
                handle.submit(Request { salt, sampling, ..Request::new([1, 2, 3]) }).unwrap()
            })
            .collect();
        let mut turn = || {
            assert!(engine.turn());
            for stream in &mut streams {
                while stream.next().now_or_never().flatten().is_some() {}
            }
        };
        (0..50).for_each(|_| turn());
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..1000).for_each(|_| turn());
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert_eq!(allocations, 0, "steps that overlap: {overlaps}");
        let tokens = handle.status().tokens_out;
        assert!(tokens >= 32 * 1040, "nearly every step gives every sequence a token: {tokens}");
    }
}
