//! A checkpoint's weights on a device: bf16 matrices as the checkpoint has them, or packed to fewer bits on the way,
//! through one staging area.

use candle_core::DType;
use half::{bf16, f16};
use hearth_kernels::cuda::buffer::{Buffer, Host, Plain};
use hearth_kernels::cuda::driver::{Device, DeviceError, Mark};
use hearth_kernels::cuda::experts::Stack;
use hearth_kernels::cuda::weightonly::{self, Format, PANEL, pack_panel};

use crate::checkpoint::Checkpoint;
use crate::decoder::LoadError;
use crate::layout::{self, Block, Layout, Role};
use crate::shard::{Cut, Packing, Shard};
use crate::widen::widen;

/// Columns that products read at once.
pub const CHUNK: usize = 8;
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

/// The weight of a product inside a layer.
#[derive(Debug)]
pub enum Weight {
    Wide(Matrix),
    Narrow(weightonly::Weight),
}

#[derive(Debug)]
pub struct Linear {
    pub weight: Weight,
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
        gate_up: Stack,
        down: Stack,
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

    /// The half that is filled next, once what was last copied from it has arrived.
    fn half(&mut self) -> Result<&mut Host<u8>, DeviceError> {
        let (half, mark) = &mut self.halves[self.next];
        if let Some(mark) = mark.take() {
            self.device.wait(mark)?;
        }
        Ok(half)
    }

    /// Copies the pieces, numbers of type `dtype`, one after another, to `to`.
    fn copy<'a>(
        &mut self,
        to: &Buffer<bf16>,
        dtype: DType,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), DeviceError> {
        let (mut filled, mut done) = (0, 0);
        for mut piece in pieces {
            while !piece.is_empty() {
                let half = self.half()?;
                let numbers = (piece.len() / dtype.size_in_bytes()).min((STAGE - filled) / 2);
                let (now, later) = piece.split_at(numbers * dtype.size_in_bytes());
                narrow(dtype, now, &mut half[filled..filled + 2 * numbers]);
                filled += 2 * numbers;
                piece = later;
                if filled == STAGE {
                    self.flush(to, done, filled)?;
                    (filled, done) = (0, done + filled);
                }
            }
        }
        assert_eq!(done + filled, to.bytes(), "bug: a weight of another size");
        if filled > 0 { self.flush(to, done, filled) } else { Ok(()) }
    }

    fn flush<T: Plain>(&mut self, to: &Buffer<T>, at: usize, bytes: usize) -> Result<(), DeviceError> {
        assert!(at + bytes <= to.bytes().next_multiple_of(2), "bug: a weight of another size");
        let (half, mark) = &mut self.halves[self.next];
        // SAFETY: the bytes end inside `to`, and the half is left alone until its mark.
        unsafe { self.device.copy_in(to.address() + at as u64, half.as_ptr(), bytes)? };
        *mark = Some(self.device.mark()?);
        self.next = 1 - self.next;
        Ok(())
    }
}

/// Numbers of a checkpoint as bf16, to nearest.
fn narrow(dtype: DType, from: &[u8], to: &mut [u8]) {
    let mut put = |values: &mut dyn Iterator<Item = f32>| {
        for (to, value) in to.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *to = bf16::from_f32(value).to_le_bytes();
        }
    };
    match dtype {
        DType::BF16 => to.copy_from_slice(from),
        DType::F16 => put(&mut from.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
        _ => put(&mut from.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
    }
}

/// Columns that stay together on one rank: those that share a scale, and those that are read at once.
pub fn packing(quantize: Option<Format>) -> Packing {
    let (name, group) = quantize.map_or(("bf16", 1), |format| (format.title(), format.group()));
    let is_filled = quantize.is_none_or(|format| format.blocks().is_none());
    Packing { name, block: group.max(CHUNK), is_filled }
}

/// A rank's part of a block's tensors in the checkpoint, all of one type.
struct Parts<'a> {
    dtype: DType,
    tensors: Vec<Cut<'a>>,
}

impl<'a> Parts<'a> {
    /// All rows in order.
    fn rows(&self, by_turns: bool) -> impl Iterator<Item = &'a [u8]> {
        (0..self.tensors.iter().map(Cut::rows).sum()).map(move |index| self.row(index, by_turns))
    }

    /// Rows of the parts one after another, or of the two of them by turns.
    fn row(&self, mut index: usize, by_turns: bool) -> &'a [u8] {
        if by_turns {
            let within = index % (2 * TURN);
            return self.tensors[within / TURN].row(index / (2 * TURN) * TURN + within % TURN);
        }
        for tensor in &self.tensors {
            match tensor.rows() {
                rows if index < rows => return tensor.row(index),
                rows => index -= rows,
            }
        }
        panic!("bug: {index} rows beyond the last of a weight")
    }
}

pub struct Loader<'a> {
    device: &'a Device,
    checkpoint: &'a Checkpoint,
    shard: Shard,
    quantize: Option<Format>,
    stage: Stage,
    progress: &'a mut dyn FnMut(u64),
    read: u64,
    held: u64,
}

impl<'a> Loader<'a> {
    pub fn new(
        device: &'a Device,
        checkpoint: &'a Checkpoint,
        shard: Shard,
        quantize: Option<Format>,
        progress: &'a mut dyn FnMut(u64),
    ) -> Result<Self, DeviceError> {
        Ok(Self {
            device,
            checkpoint,
            shard,
            quantize,
            stage: Stage::new(device)?,
            progress,
            read: 0,
            held: 0,
        })
    }

    /// Reads the tensors of `layout`, which is the shard's.
    pub fn weights(mut self, layout: &Layout) -> Result<Weights, LoadError> {
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
        let weight = match packed_as(block, self.quantize) {
            None => Weight::Wide(self.matrix(block)?),
            Some(format) => Weight::Narrow(self.packed(&[block], format, false)?),
        };
        Ok(Linear { weight, bias })
    }

    fn matrix(&mut self, block: &Block) -> Result<Matrix, LoadError> {
        let parts = self.parts(block);
        let numbers = Buffer::new(self.device, block.rows() * block.cols())?;
        self.stage.copy(&numbers, parts.dtype, parts.rows(false))?;
        self.done(block, numbers.bytes());
        Ok(Matrix { numbers, rows: block.rows(), cols: block.cols() })
    }

    /// Weights of fewer bits and of one shape, the panels of one behind those of the other.
    fn packed(
        &mut self,
        blocks: &[&Block],
        format: Format,
        by_turns: bool,
    ) -> Result<weightonly::Weight, LoadError> {
        let (n, k) = (blocks[0].rows(), blocks[0].cols());
        let panels = n.div_ceil(PANEL);
        let (bytes, scale_bytes) = format.panel_bytes(k);
        let (bytes, scale_bytes) = (panels * bytes, panels * scale_bytes);
        let numbers = Buffer::new(self.device, blocks.len() * bytes)?;
        let mut scales = Buffer::new(self.device, blocks.len() * scale_bytes)?;
        for (i, block) in blocks.iter().enumerate() {
            let own = self.pack(block, format, by_turns, &numbers.part(i * bytes, bytes))?;
            scales.put(i * scale_bytes, &own)?;
            self.done(block, bytes + scale_bytes);
        }
        Ok(weightonly::Weight { format, n, k, numbers, scales })
    }

    /// Packs a weight by all cores in the staging area, some panels at a time, and returns its scales.
    fn pack(
        &mut self,
        block: &Block,
        format: Format,
        by_turns: bool,
        numbers: &Buffer<u8>,
    ) -> Result<Vec<u8>, LoadError> {
        let (n, k) = (block.rows(), block.cols());
        let (parts, panels) = (self.parts(block), n.div_ceil(PANEL));
        let (bytes, scale_bytes) = format.panel_bytes(k);
        let mut scales = vec![0; panels * scale_bytes];
        // Even the widest supported k leaves room for many panels in a half.
        let at_once = STAGE / bytes;
        assert!(at_once > 0, "bug: {k} columns in a panel");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for (round, scales) in scales.chunks_mut(at_once * scale_bytes).enumerate() {
            let (first, count) = (round * at_once, scales.len() / scale_bytes);
            let each = count.div_ceil(cores);
            let half = self.stage.half()?;
            let shares = half[..count * bytes].chunks_mut(each * bytes);
            std::thread::scope(|scope| {
                for (share, (to, scales)) in shares.zip(scales.chunks_mut(each * scale_bytes)).enumerate() {
                    let parts = &parts;
                    scope.spawn(move || {
                        let room = to.chunks_exact_mut(bytes).zip(scales.chunks_exact_mut(scale_bytes));
                        for (panel, (to, scales)) in (first + share * each..).zip(room) {
                            let rows = panel * PANEL..((panel + 1) * PANEL).min(n);
                            let wide: Vec<Vec<f32>> =
                                rows.map(|row| numbers_of(parts.dtype, parts.row(row, by_turns))).collect();
                            let rows: Vec<&[f32]> = wide.iter().map(Vec::as_slice).collect();
                            pack_panel(format, &rows, to, scales);
                        }
                    });
                }
            });
            self.stage.flush(numbers, first * bytes, count * bytes)?;
        }
        Ok(scales)
    }

    fn experts(&mut self, router: &Block, mlps: &[layout::Mlp]) -> Result<Mlp, LoadError> {
        let (gate_up, down): (Vec<_>, Vec<_>) = mlps.iter().map(|mlp| (&mlp.gate_up, &mlp.down)).unzip();
        Ok(Mlp::Experts {
            gate_up: self.stack(&gate_up, true)?,
            down: self.stack(&down, false)?,
            router: self.matrix(router)?,
        })
    }

    /// Weights of one shape, those of an expert behind those of the one before.
    fn stack(&mut self, blocks: &[&Block], by_turns: bool) -> Result<Stack, LoadError> {
        if let Some(format) = packed_as(blocks[0], self.quantize) {
            return Ok(Stack::Packed(self.packed(blocks, format, by_turns)?));
        }
        let each = blocks[0].rows() * blocks[0].cols();
        let numbers = Buffer::new(self.device, blocks.len() * each)?;
        for (i, block) in blocks.iter().enumerate() {
            let (parts, to) = (self.parts(block), numbers.part(i * each, each));
            self.stage.copy(&to, parts.dtype, parts.rows(by_turns))?;
            self.done(block, to.bytes());
        }
        Ok(Stack::Wide(numbers))
    }

    /// Gate over up, their rows taking turns.
    fn gate_up(&mut self, block: &Block, bias: &Option<Block>) -> Result<Linear, LoadError> {
        let weight = match packed_as(block, self.quantize) {
            None => {
                let (rows, cols) = (block.rows(), block.cols());
                let numbers = Buffer::new(self.device, rows * cols)?;
                self.turned(block, &numbers)?;
                Weight::Wide(Matrix { numbers, rows, cols })
            }
            Some(format) => Weight::Narrow(self.packed(&[block], format, true)?),
        };
        let bias = match bias {
            None => None,
            Some(bias) => {
                let (wide, bytes) = widen(self.checkpoint, bias, self.shard);
                let (gate, up) = wide.split_at(wide.len() / 2);
                let turns = gate.chunks(TURN).zip(up.chunks(TURN));
                let turned: Vec<f32> = turns.flat_map(|(gate, up)| [gate, up].concat()).collect();
                self.count(bytes, 4 * turned.len());
                Some(Buffer::of(self.device, &turned)?)
            }
        };
        Ok(Linear { weight, bias })
    }

    fn turned(&mut self, block: &Block, to: &Buffer<bf16>) -> Result<(), LoadError> {
        let parts = self.parts(block);
        assert_eq!(parts.tensors.len(), 2, "bug: not a gate and an up");
        self.stage.copy(to, parts.dtype, parts.rows(true))?;
        self.done(block, to.bytes());
        Ok(())
    }

    /// A norm's weight or a bias, widened.
    fn vector(&mut self, block: &Block) -> Result<Buffer<f32>, LoadError> {
        let (wide, bytes) = widen(self.checkpoint, block, self.shard);
        self.count(bytes, 4 * wide.len());
        Ok(Buffer::of(self.device, &wide)?)
    }

    fn parts(&self, block: &Block) -> Parts<'a> {
        let dtype = self.checkpoint.dtype(&block.parts[0].name).expect("bug: the checkpoint was checked");
        let tensors = block.parts.iter().map(|part| self.shard.place(self.checkpoint, part)).collect();
        Parts { dtype, tensors }
    }

    /// All of a block is on the device.
    fn done(&mut self, block: &Block, held: usize) {
        let read = self.parts(block).tensors.iter().map(Cut::bytes).sum();
        block.parts.iter().for_each(|part| self.checkpoint.release(&part.name));
        self.count(read, held);
    }

    fn count(&mut self, read: usize, held: usize) {
        self.read += read as u64;
        self.held += held as u64;
        (self.progress)(self.read);
    }
}

/// What a block is packed as at load: products inside layers whose width divides into the format's blocks.
pub fn packed_as(block: &Block, quantize: Option<Format>) -> Option<Format> {
    quantize.filter(|format| block.role == Role::Linear && format.takes(block.cols()))
}

/// Numbers of a checkpoint, widened.
fn numbers_of(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}
