//! A mixture of experts through its launch code, on the emulated device, against the processor's.

use candle_core::{DType, Device, Tensor};
use half::bf16;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::emulated::{Emulated, Order};
use hearth_kernels::cuda::experts::{DIRECT_ROWS, Experts, Room, Routes, Shape, Stack};
use hearth_kernels::cuda::product::gate_row;
use hearth_kernels::{Activation, Context, Isa, View, Weight, Write};

const SHAPE: Shape = Shape { experts: 8, top_k: 2, width: 64, ffn: 48 };
const ROWS: usize = 40;

fn waves(count: usize, step: f32, size: f32) -> Vec<bf16> {
    (0..count).map(|i| bf16::from_f32((i as f32 * step).sin() * size)).collect()
}

/// What the processor gives: `[rows, width]`.
fn expected(x: &[bf16], logits: &[f32], gate_up: &[Vec<bf16>], down: &[Vec<bf16>]) -> Vec<f32> {
    let ctx = Context::cpu_with(Isa::best(), 1).unwrap();
    let Shape { experts, top_k, width, ffn } = SHAPE;
    let pack = |numbers: &Vec<bf16>, rows, cols| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        Weight::pack(&ctx, &[View { dtype: DType::BF16, rows, cols, bytes: &bytes }]).unwrap()
    };
    let gate_up: Vec<Weight> = gate_up.iter().map(|w| pack(w, 2 * ffn, width)).collect();
    let down: Vec<Weight> = down.iter().map(|w| pack(w, width, ffn)).collect();
    let rows = x.len() / width;
    let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let x = Tensor::from_vec(wide, (rows, width), &Device::Cpu).unwrap();
    let logits = Tensor::from_slice(logits, (rows, experts), &Device::Cpu).unwrap();
    let out = Tensor::ones((rows, width), DType::F32, &Device::Cpu).unwrap();
    let mut routes = hearth_kernels::Routes::new(rows, experts, top_k);
    hearth_kernels::route(&ctx, &logits, rows, experts, top_k, true, &mut routes).unwrap();
    let (act, how) = (Activation::Silu, Write::Add);
    hearth_kernels::experts(&ctx, &x, rows, &routes, &gate_up, &down, act, &out, how).unwrap();
    out.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn few_rows_one_by_one_and_any_number_grouped_give_what_the_processor_gives() {
    let device = Emulated::open(Order::Shuffled, 1 << 28);
    let Shape { experts, top_k, width, ffn } = SHAPE;
    let kernels = Experts::load(&device, None).unwrap();
    let routes = Routes::new(&device, SHAPE, ROWS).unwrap();
    let weight = |e: usize, count: usize, step: f32| waves(count, step + e as f32 * 0.013, 0.3);
    let gate_up: Vec<_> = (0..experts).map(|e| weight(e, 2 * ffn * width, 0.37)).collect();
    let down: Vec<_> = (0..experts).map(|e| weight(e, width * ffn, 0.71)).collect();
    // Gate and up take turns.
    let mut turned = vec![bf16::ZERO; experts * 2 * ffn * width];
    for (e, own) in gate_up.iter().enumerate() {
        for (i, row) in own.chunks(width).enumerate() {
            let (gate, up) = gate_row(i % ffn);
            let to = (e * 2 * ffn + if i < ffn { gate } else { up }) * width;
            turned[to..to + width].copy_from_slice(row);
        }
    }
    let x = waves(ROWS * width, 0.19, 1.0);
    // The third expert is nobody's.
    let logits: Vec<f32> = (0..ROWS * experts)
        .map(|i| if i % experts == 2 { -9.0 } else { (i as f32 * 1.7).sin() * 3.0 })
        .collect();
    let want = expected(&x, &logits, &gate_up, &down);

    let (x, logits) = (Buffer::of(&device, &x).unwrap(), Buffer::of(&device, &logits).unwrap());
    let turned = Stack::Wide(Buffer::of(&device, &turned).unwrap());
    let down = Stack::Wide(Buffer::of(&device, &down.concat()).unwrap());
    let pairs = ROWS * top_k;
    let gathered = Buffer::new(&device, pairs * width).unwrap();
    let middle = Buffer::new(&device, pairs * ffn).unwrap();
    let results = Buffer::new(&device, pairs * width).unwrap();
    let room = Room { gathered: &gathered, middle: &middle, results: &results };
    let mut count = Buffer::zeros(&device, 1).unwrap();
    let mut residual = Buffer::of(&device, &vec![1.0; ROWS * width]).unwrap();
    let act = Activation::Silu;

    for (direct, bucket, counts) in [(true, DIRECT_ROWS, [1, 4]), (false, 4, [1, 3]), (false, ROWS, [40, 7])]
    {
        let graph = device
            .capture(&mut || {
                kernels.route(bucket, &count, &logits, true, &routes)?;
                if direct {
                    kernels.direct(bucket, &count, &routes, &x, &turned, &down, act, &middle, &residual)
                } else {
                    kernels.grouped(bucket, &count, &routes, &x, &turned, &down, act, room, &residual)
                }
            })
            .unwrap();
        for rows in counts {
            count.put(0, &[rows as u32]).unwrap();
            residual.put(0, &vec![1.0; ROWS * width]).unwrap();
            // SAFETY: all that was captured is still there.
            unsafe { device.replay(graph).unwrap() };
            let got = residual.get().unwrap();
            for (i, (got, want)) in got.iter().zip(&want).enumerate().take(rows * width) {
                assert!(
                    (got - want).abs() < 1e-2 * want.abs().max(1.0),
                    "{rows} of {bucket}, {i}: {got} {want}"
                );
            }
            assert!(got[rows * width..].iter().all(|x| *x == 1.0), "rows beyond the count are left alone");
        }
    }
}
