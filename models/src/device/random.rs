//! Weights of a shape without a checkpoint: random numbers, made on the device.

use half::bf16;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::driver::{Device, DeviceError};
use hearth_kernels::cuda::stream::Stream;

use super::weights::{Layer, Linear, Matrix, Mlp, Weight, Weights};
use crate::decoder::LoadError;
use crate::layout::{self, Block, Layout};
use crate::spec::Spec;

/// Keeps the size of a row through a product; rows of an embedding have the size of one.
pub fn weights(device: &Device, spec: &Spec) -> Result<Weights, LoadError> {
    let mut maker =
        Maker { device, stream: Stream::load(device)?, seed: 0, held: 0, unit_offset: spec.unit_offset };
    let layout = Layout::of(spec);
    let embedding = maker.matrix(&layout.embedding, 1)?;
    let layers = layout.layers.iter().map(|layer| maker.layer(layer)).collect::<Result<_, DeviceError>>()?;
    let norm = maker.norm(&layout.norm)?;
    let head = layout.head.as_ref().map(|head| maker.matrix(head, head.cols())).transpose()?;
    device.finish()?;
    Ok(Weights { embedding, layers, norm, head, bytes: maker.held })
}

struct Maker<'a> {
    device: &'a Device,
    stream: Stream,
    /// Of the matrix that was made last.
    seed: u32,
    held: u64,
    unit_offset: bool,
}

impl Maker<'_> {
    fn layer(&mut self, layer: &layout::Layer) -> Result<Layer, DeviceError> {
        Ok(Layer {
            attention_norm: self.norm(&layer.attention_norm)?,
            qkv: self.linear(&layer.qkv, &layer.qkv_bias)?,
            output: self.linear(&layer.output, &layer.output_bias)?,
            mlp_norm: self.norm(&layer.mlp_norm)?,
            mlp: match (&layer.router, &layer.mlps[..]) {
                (None, [mlp]) => Mlp::Dense {
                    gate_up: self.linear(&mlp.gate_up, &mlp.gate_up_bias)?,
                    down: self.linear(&mlp.down, &mlp.down_bias)?,
                },
                (router, mlps) => {
                    let router = router.as_ref().expect("bug: several MLPs without a router");
                    let (gate_up, down) = (&mlps[0].gate_up, &mlps[0].down);
                    Mlp::Experts {
                        router: self.matrix(router, router.cols())?,
                        gate_up: self
                            .numbers(mlps.len() * gate_up.rows() * gate_up.cols(), gate_up.cols())?,
                        down: self.numbers(mlps.len() * down.rows() * down.cols(), down.cols())?,
                    }
                }
            },
        })
    }

    fn linear(&mut self, block: &Block, bias: &Option<Block>) -> Result<Linear, DeviceError> {
        let bias = bias.as_ref().map(|bias| self.vector(bias, 0.1)).transpose()?;
        Ok(Linear { weight: Weight::Wide(self.matrix(block, block.cols())?), bias })
    }

    fn matrix(&mut self, block: &Block, inputs: usize) -> Result<Matrix, DeviceError> {
        let (rows, cols) = (block.rows(), block.cols());
        Ok(Matrix { numbers: self.numbers(rows * cols, inputs)?, rows, cols })
    }

    /// Uniform numbers whose variance is one over `inputs`.
    fn numbers(&mut self, count: usize, inputs: usize) -> Result<Buffer<bf16>, DeviceError> {
        let numbers = Buffer::new(self.device, count)?;
        self.seed += 1;
        self.stream.fill(&numbers, self.seed, (3.0 / inputs as f32).sqrt())?;
        self.held += numbers.bytes() as u64;
        Ok(numbers)
    }

    /// A norm that only norms.
    fn norm(&mut self, block: &Block) -> Result<Buffer<f32>, DeviceError> {
        self.vector(block, if self.unit_offset { 0.0 } else { 1.0 })
    }

    fn vector(&mut self, block: &Block, value: f32) -> Result<Buffer<f32>, DeviceError> {
        let vector = Buffer::of(self.device, &vec![value; block.rows()])?;
        self.held += vector.bytes() as u64;
        Ok(vector)
    }
}
