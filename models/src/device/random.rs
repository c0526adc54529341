//! Weights of a shape without a checkpoint: random numbers, made on the device; packed ones repeat some panels that were
//! packed on the host.

use std::collections::HashMap;

use half::bf16;
use hearth_kernels::cuda::buffer::{Buffer, Host};
use hearth_kernels::cuda::driver::{Device, DeviceError};
use hearth_kernels::cuda::experts::Stack;
use hearth_kernels::cuda::stream::{Stream, number};
use hearth_kernels::cuda::weightonly::{self, Format, PANEL, Packed};

use super::weights::{Layer, Linear, Matrix, Mlp, Weight, Weights, packed_as};
use crate::decoder::LoadError;
use crate::layout::{self, Block, Layout};
use crate::spec::Spec;

/// Panels of a packed weight that differ.
const PANELS: usize = 16;

/// Keeps the size of a row through a product; rows of an embedding have the size of one.
pub fn weights(device: &Device, spec: &Spec, quantize: Option<Format>) -> Result<Weights, LoadError> {
    let mut maker = Maker {
        device,
        stream: Stream::load(device)?,
        quantize,
        panels: HashMap::new(),
        seed: 0,
        held: 0,
        unit_offset: spec.unit_offset,
    };
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
    quantize: Option<Format>,
    /// By columns, numbers and scales of the panels that are repeated. They are copied from until the device is done.
    panels: HashMap<usize, (Host<u8>, Host<u8>)>,
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
                        gate_up: self.stack(gate_up, mlps.len())?,
                        down: self.stack(down, mlps.len())?,
                    }
                }
            },
        })
    }

    fn linear(&mut self, block: &Block, bias: &Option<Block>) -> Result<Linear, DeviceError> {
        let bias = bias.as_ref().map(|bias| self.vector(bias, 0.1)).transpose()?;
        let weight = match packed_as(block, self.quantize) {
            None => Weight::Wide(self.matrix(block, block.cols())?),
            Some(format) => Weight::Narrow(self.packed(format, block, 1)?),
        };
        Ok(Linear { weight, bias })
    }

    fn stack(&mut self, block: &Block, experts: usize) -> Result<Stack, DeviceError> {
        Ok(match packed_as(block, self.quantize) {
            None => Stack::Wide(self.numbers(experts * block.rows() * block.cols(), block.cols())?),
            Some(format) => Stack::Packed(self.packed(format, block, experts)?),
        })
    }

    /// So many weights like `block` behind one another.
    fn packed(
        &mut self,
        format: Format,
        block: &Block,
        count: usize,
    ) -> Result<weightonly::Weight, DeviceError> {
        let (n, k) = (block.rows(), block.cols());
        if !self.panels.contains_key(&k) {
            let scale = (3.0 / k as f32).sqrt();
            let wide: Vec<f32> =
                (0..PANELS * PANEL * k).map(|i| number(i as u32, 1, scale).to_f32()).collect();
            let Packed { numbers, scales, .. } = Packed::of(format, (PANELS * PANEL, k), &wide);
            let host = |bytes: &[u8]| -> Result<Host<u8>, DeviceError> {
                let mut host = Host::new(self.device, bytes.len())?;
                host.copy_from_slice(bytes);
                Ok(host)
            };
            self.panels.insert(k, (host(&numbers)?, host(&scales)?));
        }
        let (numbers, scales) = &self.panels[&k];
        let (bytes, scale_bytes) = format.panel_bytes(k);
        let panels = count * n.div_ceil(PANEL);
        let numbers = self.repeated(numbers, panels * bytes)?;
        let scales = self.repeated(scales, panels * scale_bytes)?;
        self.held += (numbers.bytes() + scales.bytes()) as u64;
        Ok(weightonly::Weight { format, n, k, numbers, scales })
    }

    fn repeated(&self, piece: &Host<u8>, bytes: usize) -> Result<Buffer<u8>, DeviceError> {
        let buffer = Buffer::new(self.device, bytes)?;
        for at in (0..bytes).step_by(piece.len()) {
            let count = piece.len().min(bytes - at);
            // SAFETY: the piece has as many bytes and stays as it is until the device is done; they end inside the buffer.
            unsafe { self.device.copy_in(buffer.at(at), piece.as_ptr(), count)? };
        }
        Ok(buffer)
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
