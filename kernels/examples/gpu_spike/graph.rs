//! One captured graph on candle's own stream: the feed-forward products of a small decoder, one row, replayed bit for
//! bit; and what a launch costs either way.

use half::bf16;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::driver::{DeviceError, Graph};
use hearth_kernels::cuda::skinny::Class;
use serde_json::{Value, json};

use crate::{Bench, Failure};

/// Buffers of the chain; allocated once, so that a replay finds them where the capture did.
struct Chain {
    layers: Vec<(Buffer<bf16>, Buffer<bf16>)>,
    width: usize,
    inner: usize,
    start: Buffer<bf16>,
    narrow: Buffer<bf16>,
    wide: Buffer<bf16>,
    up: Buffer<f32>,
    down: Buffer<f32>,
}

impl Chain {
    fn new(bench: &Bench) -> Result<Self, Failure> {
        let (layers, width, inner) = if bench.quick { (2, 128, 448) } else { (8, 4096, 14_336) };
        let layers = (0..layers)
            .map(|l| Ok((bench.weight(inner, width, 2 * l)?, bench.weight(width, inner, 2 * l + 1)?)))
            .collect::<Result<_, Failure>>()?;
        let start = Buffer::new(&bench.gpu, width)?;
        bench.stream.fill(&start, 77, 1.0)?;
        Ok(Self {
            layers,
            width,
            inner,
            start,
            narrow: Buffer::new(&bench.gpu, width)?,
            wide: Buffer::new(&bench.gpu, inner)?,
            up: bench.poisoned(inner)?,
            down: bench.poisoned(width)?,
        })
    }

    fn launches(&self) -> usize {
        4 * self.layers.len()
    }

    /// Each layer reads what the one before wrote: a launch out of order changes the result.
    fn run(&self, bench: &Bench) -> Result<(), DeviceError> {
        let (width, inner) = (self.width, self.inner);
        for (i, (up, down)) in self.layers.iter().enumerate() {
            let input = if i == 0 { &self.start } else { &self.narrow };
            bench.skinny.launch(Class::Block, (1, inner, width), input, up, &self.up)?;
            bench.stream.narrow(&self.up, &self.wide, inner)?;
            bench.skinny.launch(Class::Block, (1, width, inner), &self.wide, down, &self.down)?;
            bench.stream.narrow(&self.down, &self.narrow, width)?;
        }
        Ok(())
    }

    /// The result as bits; the buffer is NaN again afterwards.
    fn take(&mut self) -> Result<Vec<u32>, Failure> {
        let bits = self.down.get()?.into_iter().map(f32::to_bits).collect();
        self.down.put(0, &vec![f32::NAN; self.width])?;
        Ok(bits)
    }
}

fn replay(bench: &Bench, graph: Graph) -> Result<(), DeviceError> {
    // SAFETY: the chain's buffers live as long as the chain, which outlives its graphs.
    unsafe { bench.gpu.replay(graph) }
}

/// Whether the graph gave the eager bits, and the times of both.
pub fn run(bench: &Bench) -> Result<(bool, Value), Failure> {
    let mut chain = Chain::new(bench)?;
    chain.run(bench)?;
    let eager = chain.take()?;
    chain.run(bench)?;
    let again = chain.take()?;
    let graph = bench.gpu.capture(&mut || chain.run(bench))?;
    let untouched = chain.take()?;
    let mut replays = Vec::new();
    for _ in 0..2 {
        replay(bench, graph)?;
        replays.push(chain.take()?);
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
    let eager_us = bench.clock.measure(4, |_| Ok(chain.run(bench)?))?.median_us * per;
    let graph_us = bench.clock.measure(4, |_| Ok(replay(bench, graph)?))?.median_us * per;

    // A kernel of nearly no work: what is left is the launch.
    const SMALL: usize = 512;
    let tiny = || (0..SMALL).try_for_each(|_| bench.stream.narrow(&chain.down, &chain.narrow, chain.width));
    let tiny_graph = bench.gpu.capture(&mut || tiny())?;
    let tiny_eager_us = bench.clock.measure(2, |_| Ok(tiny()?))?.median_us / SMALL as f64;
    let tiny_graph_us = bench.clock.measure(2, |_| Ok(replay(bench, tiny_graph)?))?.median_us / SMALL as f64;
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
