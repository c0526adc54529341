//! One captured graph on candle's own stream: the feed-forward products of a small decoder, one row, replayed bit for
//! bit; and what a launch costs either way.

use candle_core::Tensor;
use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaSlice};
use half::bf16;
use hearth_kernels::cuda::skinny::Class;
use serde_json::{Value, json};

use crate::product::lend;
use crate::{Bench, Failure};

/// Buffers of the chain; allocated once, so that a replay finds them where the capture did.
struct Chain {
    layers: Vec<(Tensor, Tensor)>,
    width: usize,
    inner: usize,
    start: CudaSlice<bf16>,
    narrow: CudaSlice<bf16>,
    wide: CudaSlice<bf16>,
    up: CudaSlice<f32>,
    down: CudaSlice<f32>,
}

impl Chain {
    fn new(bench: &Bench) -> Result<Self, Failure> {
        let (layers, width, inner) = if bench.quick { (2, 128, 448) } else { (8, 4096, 14_336) };
        let layers = (0..layers)
            .map(|l| Ok((bench.weight(inner, width, 2 * l)?, bench.weight(width, inner, 2 * l + 1)?)))
            .collect::<Result<_, Failure>>()?;
        let start = bench.cuda.alloc_zeros::<bf16>(width)?;
        bench.stream.fill(&start, 77, 1.0)?;
        Ok(Self {
            layers,
            width,
            inner,
            start,
            narrow: bench.cuda.alloc_zeros::<bf16>(width)?,
            wide: bench.cuda.alloc_zeros::<bf16>(inner)?,
            up: bench.poisoned(inner)?,
            down: bench.poisoned(width)?,
        })
    }

    fn launches(&self) -> usize {
        4 * self.layers.len()
    }

    /// Each layer reads what the one before wrote: a launch out of order changes the result.
    fn run(&mut self, bench: &Bench) -> Result<(), Failure> {
        let (width, inner) = (self.width, self.inner);
        for (i, (up, down)) in self.layers.iter().enumerate() {
            let input = if i == 0 { &self.start } else { &self.narrow };
            lend(up, |w| bench.skinny.launch(Class::Block, (1, inner, width), input, w, &mut self.up))?;
            bench.stream.narrow(&self.up, &mut self.wide, inner)?;
            lend(down, |w| {
                bench.skinny.launch(Class::Block, (1, width, inner), &self.wide, w, &mut self.down)
            })?;
            bench.stream.narrow(&self.down, &mut self.narrow, width)?;
        }
        Ok(())
    }

    /// The result as bits; the buffer is NaN again afterwards.
    fn take(&mut self, bench: &Bench) -> Result<Vec<u32>, Failure> {
        let stream = bench.cuda.cuda_stream();
        let bits = stream.clone_dtoh(&self.down)?.into_iter().map(f32::to_bits).collect();
        stream.memcpy_htod(&vec![f32::NAN; self.width], &mut self.down)?;
        Ok(bits)
    }
}

fn capture(bench: &Bench, run: impl FnOnce() -> Result<(), Failure>) -> Result<CudaGraph, Failure> {
    let stream = bench.cuda.cuda_stream();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let captured = run();
    // Ended even if a launch failed: the stream takes no other work before.
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    captured?;
    let graph = graph?.ok_or("the capture recorded nothing")?;
    graph.upload()?;
    Ok(graph)
}

/// Whether the graph gave the eager bits, and the times of both.
pub fn run(bench: &Bench) -> Result<(bool, Value), Failure> {
    let mut chain = Chain::new(bench)?;
    chain.run(bench)?;
    let eager = chain.take(bench)?;
    chain.run(bench)?;
    let again = chain.take(bench)?;
    let graph = capture(bench, || chain.run(bench))?;
    let untouched = chain.take(bench)?;
    let mut replays = Vec::new();
    for _ in 0..2 {
        graph.launch()?;
        replays.push(chain.take(bench)?);
    }
    let poison = f32::NAN.to_bits();
    let right = eager == again
        && !eager.contains(&poison)
        && untouched.iter().all(|&bits| bits == poison)
        && replays.iter().all(|replay| *replay == eager);
    println!(
        "graph of {} launches {}",
        chain.launches(),
        if right { "equals eager bit for bit" } else { "DIFFERS" }
    );
    if bench.quick {
        return Ok((right, json!({ "equal": right })));
    }

    let per = 1.0 / chain.launches() as f64;
    let eager_us = bench.clock.measure(4, |_| chain.run(bench))?.median_us * per;
    let graph_us = bench.clock.measure(4, |_| Ok(graph.launch()?))?.median_us * per;

    // A kernel of nearly no work: what is left is the launch.
    const SMALL: usize = 512;
    let tiny = |chain: &mut Chain| -> Result<(), Failure> {
        (0..SMALL).try_for_each(|_| Ok(bench.stream.narrow(&chain.down, &mut chain.narrow, chain.width)?))
    };
    let tiny_graph = capture(bench, || tiny(&mut chain))?;
    let tiny_eager_us = bench.clock.measure(2, |_| tiny(&mut chain))?.median_us / SMALL as f64;
    let tiny_graph_us = bench.clock.measure(2, |_| Ok(tiny_graph.launch()?))?.median_us / SMALL as f64;
    println!("a launch of the chain: eager {eager_us:.2} us, graph {graph_us:.2} us");
    println!("a launch of next to nothing: eager {tiny_eager_us:.2} us, graph {tiny_graph_us:.2} us");
    Ok((
        right,
        json!({
            "equal": right, "launches": chain.launches(), "eager_us": eager_us, "graph_us": graph_us,
            "tiny_launches": SMALL, "tiny_eager_us": tiny_eager_us, "tiny_graph_us": tiny_graph_us,
        }),
    ))
}
