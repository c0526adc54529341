//! A checkpoint's weights on a device: bf16 matrices as the checkpoint has them, through one staging area.

use candle_core::DType;
use half::bf16;
use hearth_kernels::cuda::buffer::{Buffer, Host};
use hearth_kernels::cuda::driver::{Device, DeviceError, Mark};

use crate::checkpoint::Checkpoint;
use crate::decoder::LoadError;
use crate::layout::{self, Block};
use crate::widen::widen;

/// Bytes that are staged at a time.
const STAGE: usize = 16 << 20;
/// Rows of the gate and of the up projection take turns in so many: `hearth_kernels::cuda::product::gate_row`.
const TURN: usize = 8;

/// A weight `[rows, cols]`, row by row.
#[derive(Debug)]
pub struct Matrix {
    pub numbers: Buffer<bf16>,
    pub rows: usize,
    pub cols: usize,
}

#[derive(Debug)]
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Buffer<f32>>,
}

/// In all of them gate and up take turns: eight rows of gate, eight of up, and so on.
#[derive(Debug)]
pub enum Mlp {
    Dense {
        gate_up: Linear,
        down: Linear,
    },
    /// Expert after expert in one buffer.
    Experts {
        router: Matrix,
        gate_up: Buffer<bf16>,
        down: Buffer<bf16>,
    },
}

#[derive(Debug)]
pub struct Layer {
    pub attention_norm: Buffer<f32>,
    pub qkv: Linear,
    pub output: Linear,
    pub mlp_norm: Buffer<f32>,
    pub mlp: Mlp,
}

#[derive(Debug)]
pub struct Weights {
    pub embedding: Matrix,
    pub layers: Vec<Layer>,
    pub norm: Buffer<f32>,
    /// `None` when the embedding is the head.
    pub head: Option<Matrix>,
    pub bytes: u64,
}

/// Two pinned halves that take turns, so that the next is filled while the last one is copied.
struct Stage {
    device: Device,
    halves: [(Host<u8>, Option<Mark>); 2],
    next: usize,
}

impl Stage {
    fn new(device: &Device) -> Result<Self, DeviceError> {
        let half = || Ok((Host::new(device, STAGE)?, None));
        Ok(Self { device: device.clone(), halves: [half()?, half()?], next: 0 })
    }

    /// Copies the pieces, one after another, to `to`.
    fn copy<'a>(
        &mut self,
        to: &Buffer<bf16>,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), DeviceError> {
        let (mut filled, mut done) = (0, 0);
        for mut piece in pieces {
            while !piece.is_empty() {
                if filled == 0
                    && let Some(mark) = self.halves[self.next].1.take()
                {
                    self.device.wait(mark)?;
                }
                let bytes = piece.len().min(STAGE - filled);
                self.halves[self.next].0[filled..filled + bytes].copy_from_slice(&piece[..bytes]);
                filled += bytes;
                piece = &piece[bytes..];
                if filled == STAGE {
                    self.flush(to, done, filled)?;
                    (filled, done) = (0, done + filled);
                }
            }
        }
        assert_eq!(done + filled, to.bytes(), "bug: a weight of another size");
        if filled > 0 { self.flush(to, done, filled) } else { Ok(()) }
    }

    fn flush(&mut self, to: &Buffer<bf16>, at: usize, bytes: usize) -> Result<(), DeviceError> {
        let (half, mark) = &mut self.halves[self.next];
        // SAFETY: the bytes end inside `to` (asserted when all are there), and the half is left alone until its mark.
        unsafe { self.device.copy_in(to.address() + at as u64, half.as_ptr(), bytes)? };
        *mark = Some(self.device.mark()?);
        self.next = 1 - self.next;
        Ok(())
    }
}

pub struct Loader<'a> {
    device: &'a Device,
    checkpoint: &'a Checkpoint,
    stage: Stage,
    progress: &'a mut dyn FnMut(u64),
    read: u64,
    held: u64,
}

impl<'a> Loader<'a> {
    pub fn new(
        device: &'a Device,
        checkpoint: &'a Checkpoint,
        progress: &'a mut dyn FnMut(u64),
    ) -> Result<Self, DeviceError> {
        Ok(Self { device, checkpoint, stage: Stage::new(device)?, progress, read: 0, held: 0 })
    }

    pub fn weights(mut self) -> Result<Weights, LoadError> {
        let layout = self.checkpoint.layout();
        let embedding = self.matrix(&layout.embedding)?;
        let layers = layout.layers.iter().map(|layer| self.layer(layer)).collect::<Result<_, _>>()?;
        let norm = self.vector(&layout.norm)?;
        let head = layout.head.as_ref().map(|head| self.matrix(head)).transpose()?;
        self.device.finish()?;
        Ok(Weights { embedding, layers, norm, head, bytes: self.held })
    }

    fn layer(&mut self, layer: &layout::Layer) -> Result<Layer, LoadError> {
        Ok(Layer {
            attention_norm: self.vector(&layer.attention_norm)?,
            qkv: self.linear(&layer.qkv, &layer.qkv_bias)?,
            output: self.linear(&layer.output, &layer.output_bias)?,
            mlp_norm: self.vector(&layer.mlp_norm)?,
            mlp: match (&layer.router, &layer.mlps[..]) {
                (None, [mlp]) => Mlp::Dense {
                    gate_up: self.gate_up(&mlp.gate_up, &mlp.gate_up_bias)?,
                    down: self.linear(&mlp.down, &mlp.down_bias)?,
                },
                (router, mlps) => {
                    let router = router.as_ref().expect("bug: several MLPs without a router");
                    self.experts(router, mlps)?
                }
            },
        })
    }

    fn linear(&mut self, block: &Block, bias: &Option<Block>) -> Result<Linear, LoadError> {
        let bias = bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        Ok(Linear { weight: self.matrix(block)?, bias })
    }

    fn matrix(&mut self, block: &Block) -> Result<Matrix, LoadError> {
        let parts = self.parts(block)?;
        let numbers = Buffer::new(self.device, block.rows() * block.cols())?;
        self.stage.copy(&numbers, parts.into_iter())?;
        self.done(block, numbers.bytes());
        Ok(Matrix { numbers, rows: block.rows(), cols: block.cols() })
    }

    fn experts(&mut self, router: &Block, mlps: &[layout::Mlp]) -> Result<Mlp, LoadError> {
        let numbers = |block: &Block| block.rows() * block.cols();
        let (wide, long) = (numbers(&mlps[0].gate_up), numbers(&mlps[0].down));
        let gate_up = Buffer::new(self.device, mlps.len() * wide)?;
        let down = Buffer::new(self.device, mlps.len() * long)?;
        for (i, mlp) in mlps.iter().enumerate() {
            self.turned(&mlp.gate_up, &gate_up.part(i * wide, wide))?;
            let parts = self.parts(&mlp.down)?;
            self.stage.copy(&down.part(i * long, long), parts.into_iter())?;
            self.done(&mlp.down, 2 * long);
        }
        Ok(Mlp::Experts { router: self.matrix(router)?, gate_up, down })
    }

    /// Gate over up, their rows taking turns.
    fn gate_up(&mut self, block: &Block, bias: &Option<Block>) -> Result<Linear, LoadError> {
        let numbers = Buffer::new(self.device, block.rows() * block.cols())?;
        self.turned(block, &numbers)?;
        let bias = match bias {
            None => None,
            Some(bias) => {
                let (wide, bytes) = widen(self.checkpoint, bias);
                let (gate, up) = wide.split_at(wide.len() / 2);
                let turns = gate.chunks(TURN).zip(up.chunks(TURN));
                let turned: Vec<f32> = turns.flat_map(|(gate, up)| [gate, up].concat()).collect();
                self.count(bytes, 4 * turned.len());
                Some(Buffer::of(self.device, &turned)?)
            }
        };
        Ok(Linear { weight: Matrix { numbers, rows: block.rows(), cols: block.cols() }, bias })
    }

    fn turned(&mut self, block: &Block, to: &Buffer<bf16>) -> Result<(), LoadError> {
        let parts = self.parts(block)?;
        let [gate, up] = parts[..] else { panic!("bug: gate and up are {} tensors", parts.len()) };
        let turn = TURN * block.cols() * size_of::<bf16>();
        self.stage.copy(to, gate.chunks(turn).zip(up.chunks(turn)).flat_map(|(gate, up)| [gate, up]))?;
        self.done(block, to.bytes());
        Ok(())
    }

    /// A norm's weight or a bias, widened.
    fn vector(&mut self, block: &Block) -> Result<Buffer<f32>, LoadError> {
        let (wide, bytes) = widen(self.checkpoint, block);
        self.count(bytes, 4 * wide.len());
        Ok(Buffer::of(self.device, &wide)?)
    }

    /// The bytes of a block's tensors, which must be bf16.
    fn parts(&self, block: &Block) -> Result<Vec<&'a [u8]>, LoadError> {
        let part = |part: &layout::Part| {
            let slice = self.checkpoint.tensor(&part.name).expect("bug: the checkpoint was checked");
            match slice.dtype {
                DType::BF16 => Ok(slice.bytes),
                other => {
                    let value = format!("`{}` in {}", part.name, other.as_str());
                    Err(LoadError::Device { what: "weights other than bf16", value })
                }
            }
        };
        block.parts.iter().map(part).collect()
    }

    fn done(&mut self, block: &Block, bytes: usize) {
        block.parts.iter().for_each(|part| self.checkpoint.release(&part.name));
        self.count(bytes, bytes);
    }

    fn count(&mut self, read: usize, held: usize) {
        self.read += read as u64;
        self.held += held as u64;
        (self.progress)(self.read);
    }
}
