//! A rank's part of a model on a device, and where ranks speak to each other inside a step.
//!
//! What is cut, and how, is [`shard`](crate::shard)'s table. A product whose columns are cut gives a part of a sum that
//! belongs on the residual stream: the first rank adds its part to the residual it has, the others put theirs in its place, and
//! the sum over all ranks is the new residual on each of them, in place: no buffer more than one rank alone has.

use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::driver::{Device, DeviceError};
use hearth_kernels::cuda::product::Finish;

use super::weights::{CHUNK, Loader, packing};
use super::{Decoder, Options};
use crate::checkpoint::Checkpoint;
use crate::decoder::LoadError;
use crate::shard::{Indivisible, Shard};

/// The other ranks of a model, each on a device of its own.
pub trait Peers: Send {
    /// Enqueues, after all that `device` was given before: `numbers` become their sums over all ranks, with the same bits
    /// on each of them. Every rank calls it with as many numbers, in the same order of calls. Rows that a step does not fill
    /// are among them and may be anything, NaN too: nobody reads their sums.
    ///
    /// An all-reduce of NCCL goes here (`ncclAllReduce`, f32, sum, in place), on the stream of the device.
    fn sum(&self, device: &Device, numbers: &Buffer<f32>) -> Result<(), DeviceError>;

    /// Whether what [`sum`](Self::sum) enqueues can be captured and replayed, as NCCL's can. What goes through the host
    /// cannot, and the decoder enqueues every step anew.
    fn can_be_captured(&self) -> bool;
}

impl Decoder {
    /// A rank's part of a model. Its heads, its MLP and its logits are those of its part; `peers` are the ranks that have
    /// the other parts and make the same steps.
    pub fn load_shard(
        device: &Device,
        checkpoint: &Checkpoint,
        options: &Options,
        shard: Shard,
        peers: Option<Box<dyn Peers>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, LoadError> {
        assert_eq!(peers.is_none(), shard.is_whole(), "bug: {shard:?} with peers: {}", peers.is_some());
        let layout = shard.layout(checkpoint.spec(), Some(packing(options.quantize)))?;
        // What is no whole blocks stays bf16, which is cut as bf16 is.
        shard.layout(checkpoint.spec(), Some(packing(None)))?;
        let spec = shard.spec(checkpoint.spec())?;
        if !shard.is_whole() && !(spec.vocab / shard.of).is_multiple_of(CHUNK) {
            let (what, value, ranks) = ("vocabulary", spec.vocab, shard.of);
            let why = format!(" in parts of whole {CHUNK} tokens");
            return Err(Indivisible { what, value, ranks, why }.into());
        }
        Self::build(device, spec, options, checkpoint.main_dtype(), (shard, peers), || {
            Loader::new(device, checkpoint, shard, options.quantize, progress)?.weights(&layout)
        })
    }

    /// Which part of its model this is.
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// What becomes of a product that belongs on the residual stream.
    pub(super) fn share(&self) -> Finish<'_> {
        match self.shard.rank {
            0 => Finish::Add(&self.buffers.residual),
            _ => Finish::Set(&self.buffers.residual),
        }
    }

    /// Before operations that can only add to the residual: ranks but the first add to nothing.
    pub(super) fn begin_share(&self, bucket: usize) -> Result<(), DeviceError> {
        match self.shard.rank {
            0 => Ok(()),
            _ => self.kernels.row.clear(bucket, &self.meta.rows, self.spec.hidden, &self.buffers.residual),
        }
    }

    /// Makes the residual stream whole again after each rank gave its part: the one place where ranks speak to each other
    /// inside a step, twice a layer. Where there is one rank, nothing is to be done.
    pub(super) fn join(&self, bucket: usize) -> Result<(), DeviceError> {
        let Some(peers) = &self.peers else { return Ok(()) };
        peers.sum(&self.device, &self.buffers.residual.part(0, bucket * self.spec.hidden))
    }
}
