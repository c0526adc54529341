//! Attention through its launch code, on the emulated device: a captured step is replayed with other lengths.

use half::bf16;
use hearth_kernels::Heads;
use hearth_kernels::cuda::attention::{Attention, Cache, Limits, Sequences, Shape, record};
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::emulated::{Emulated, Order};
use hearth_kernels::paged::Span;

/// Values are their position in the first number of a head and one in the others, and queries ask nothing: a row gets the
/// mean of the positions that it sees.
#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn a_captured_step_attends_to_whatever_lengths_it_is_replayed_with() {
    let device = Emulated::open(Order::Ascending, 1 << 28);
    for (dim, window) in [(64, None), (128, Some(40)), (256, None)] {
        let heads = Heads { q: 4, kv: 2, dim };
        let shape = Shape { heads, e4m3: false, scale: 0.125, window, piece: 64, split: 2 };
        let limits = Limits { rows: 32, spans: 4, pieces: 20 };
        let attention = Attention::load(&device, shape, limits).unwrap();
        // Blocks in the order of positions, shared by all sequences.
        let positions = 208;
        let keys = vec![bf16::ONE; positions * heads.kv * dim];
        let value = |at: usize| match at % dim {
            0 => bf16::from_f32((at / (heads.kv * 16 * dim) * 16 + at / dim % 16) as f32),
            _ => bf16::ONE,
        };
        let values: Vec<bf16> = (0..keys.len()).map(value).collect();
        let (keys, values) = (Buffer::of(&device, &keys).unwrap(), Buffer::of(&device, &values).unwrap());
        let q = Buffer::zeros(&device, limits.rows * heads.q * dim).unwrap();
        let out = Buffer::<bf16>::new(&device, q.len()).unwrap();
        let mut spans = Buffer::zeros(&device, 16).unwrap();
        let mut count = Buffer::zeros(&device, 1).unwrap();
        let tables: Vec<u32> = (0..positions as u32 / 16).collect();
        let tables = Buffer::of(&device, &tables).unwrap();
        let graph = device
            .capture(&mut || {
                let sequences = Sequences { spans: &spans, count: &count, tables: &tables };
                attention.plan(sequences)?;
                let cache = Cache::Bf16 { keys: &keys, values: &values };
                attention.decode(sequences, &q, cache, &out)?;
                attention.prompt(limits.rows, sequences, &q, cache, &out)
            })
            .unwrap();
        for step in [vec![(1, 1)], vec![(1, 200), (20, 61), (2, 130), (1, 64)], vec![(3, 3), (1, 16)]] {
            let mut records = vec![];
            let mut row = 0;
            for (rows, context) in &step {
                records.extend(record(&Span { row, rows: *rows, table: 0, context: *context }));
                row += rows;
            }
            spans.put(0, &records).unwrap();
            count.put(0, &[step.len() as u32]).unwrap();
            // SAFETY: all that was captured is still there.
            unsafe { device.replay(graph).unwrap() };
            let out = out.get().unwrap();
            let mut rows = out.chunks(heads.q * dim);
            for (count, context) in step {
                for end in context - count + 1..=context {
                    let start = window.map_or(0, |window| end.saturating_sub(window));
                    let mean = bf16::from_f32((start + end - 1) as f32 / 2.0).to_f32();
                    for head in rows.next().unwrap().chunks(dim) {
                        let got = head[0].to_f32();
                        assert!((got - mean).abs() <= mean / 256.0, "{end} {window:?}: {got}, not {mean}");
                        assert_eq!(head[1], bf16::ONE);
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn pages_of_eight_bits_come_with_their_scales() {
    let device = Emulated::open(Order::Ascending, 1 << 28);
    for dim in [128, 256] {
        let heads = Heads { q: 2, kv: 1, dim };
        let shape = Shape { heads, e4m3: true, scale: 0.1, window: None, piece: 16, split: 1 };
        let attention = Attention::load(&device, shape, Limits { rows: 3, spans: 2, pieces: 4 }).unwrap();
        // Ones, stored as such and worth a half.
        let stored = Buffer::of(&device, &vec![0x38; 3 * 16 * dim]).unwrap();
        let scales = Buffer::of(&device, &[1.0, 2.0]).unwrap();
        let q = Buffer::zeros(&device, 3 * 2 * dim).unwrap();
        let out = Buffer::<bf16>::new(&device, q.len()).unwrap();
        let spans = [
            Span { row: 0, rows: 2, table: 0, context: 20 },
            Span { row: 2, rows: 1, table: 0, context: 40 },
        ];
        let spans = Buffer::of(&device, &spans.map(|span| record(&span)).concat()).unwrap();
        let (count, tables) = (Buffer::of(&device, &[2]).unwrap(), Buffer::of(&device, &[2, 0, 1]).unwrap());
        let sequences = Sequences { spans: &spans, count: &count, tables: &tables };
        let cache = Cache::E4m3 { keys: &stored, values: &stored, scales: &scales };
        attention.plan(sequences).unwrap();
        attention.decode(sequences, &q, cache, &out).unwrap();
        attention.prompt(3, sequences, &q, cache, &out).unwrap();
        assert_eq!(out.get().unwrap(), vec![bf16::from_f32(0.5); 3 * 2 * dim]);
    }
}
