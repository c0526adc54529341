//! The launches of a step, in order.

use half::bf16;
use hearth_kernels::cuda::attention::{Cache, Sequences};
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::driver::DeviceError;
use hearth_kernels::cuda::experts::{Room, Stack};
use hearth_kernels::cuda::product::Finish;
use hearth_kernels::cuda::row::Norm;
use hearth_kernels::cuda::skinny::{self, Class};
use hearth_kernels::cuda::weightonly;

use super::weights::{Linear, Matrix, Mlp, Weight};
use super::{Decoder, Mixture};

/// Weights with at most so many rows have their k shared by the warps of a block, in products of few rows.
const FEW_OUTPUTS: usize = 8192;

impl Decoder {
    /// Enqueues what a step of at most `bucket` rows does. How many there are, and all that is theirs, is read on the
    /// device.
    pub(super) fn enqueue(&self, bucket: usize) -> Result<(), DeviceError> {
        let Self { spec, kernels, weights, turns, kv, meta, buffers, heads, .. } = self;
        let (row, attention) = (&kernels.row, &kernels.attention);
        let (residual, normed, qkv, q) = (&buffers.residual, &buffers.normed, &buffers.qkv, &buffers.q);
        let (attended, gated) = (&buffers.attended, &buffers.gated);
        let norm = Norm { width: spec.hidden, epsilon: spec.epsilon as f32, unit_offset: spec.unit_offset };
        let sequences = Sequences { spans: &meta.spans, count: &meta.span_count, tables: &meta.tables };

        let (table, shape, scale) =
            (&weights.embedding.numbers, (spec.vocab, spec.hidden), self.embedding_scale);
        row.embed(bucket, &meta.rows, &meta.tokens, &buffers.drawn, table, shape, scale, residual)?;
        attention.plan(sequences)?;
        for (layer, pages) in weights.layers.iter().zip(kv) {
            row.add_norm(bucket, &meta.rows, residual, None, &layer.attention_norm, norm, normed)?;
            self.product(bucket, normed, &layer.qkv, Finish::Set(qkv))?;
            let cache = pages.cache();
            let (places, heads) = (meta.places(), *heads);
            match cache {
                Cache::Bf16 { keys, values } => {
                    row.turn_bf16(bucket, places, qkv, heads, turns, q, keys, values)?;
                }
                Cache::E4m3 { keys, values, scales } => {
                    row.turn_e4m3(bucket, places, qkv, heads, turns, scales, q, keys, values)?;
                }
            }
            attention.decode(sequences, q, cache, attended)?;
            if bucket > 1 {
                attention.prompt(bucket, sequences, q, cache, attended)?;
            }
            self.product(bucket, attended, &layer.output, self.share())?;
            self.join(bucket)?;

            row.add_norm(bucket, &meta.rows, residual, None, &layer.mlp_norm, norm, normed)?;
            match &layer.mlp {
                Mlp::Dense { gate_up, down } => {
                    self.product(bucket, normed, gate_up, Finish::Gate(self.activation, gated))?;
                    self.product(bucket, gated, down, self.share())?;
                }
                Mlp::Experts { router, gate_up, down } => {
                    self.experts(bucket, router, gate_up, down)?;
                }
            }
            self.join(bucket)?;
        }

        let bucket = bucket.min(self.options.logits);
        let count = &meta.logit_count;
        row.pick_norm(bucket, count, &meta.logits, residual, None, &weights.norm, norm, normed)?;
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        self.multiply(bucket, count, normed, head, None, Finish::Set(&buffers.logits))
    }

    /// The experts that the rows of `normed` choose, added to the residual.
    fn experts(
        &self,
        bucket: usize,
        router: &Matrix,
        gate_up: &Stack,
        down: &Stack,
    ) -> Result<(), DeviceError> {
        let (kernels, buffers, count) = (&self.kernels.experts, &self.buffers, &self.meta.rows);
        let (x, residual, activation) = (&buffers.normed, &buffers.residual, self.activation);
        let Mixture { scores, routes, gathered, middle, results } =
            buffers.mixture.as_ref().expect("bug: a mixture has buffers");
        // By the kernel of any number of rows: which experts a row goes to must not depend on its neighbours.
        let shape = (router.rows, router.cols);
        self.kernels.product.launch(bucket, count, x, &router.numbers, shape, None, Finish::Set(scores))?;
        kernels.route(bucket, count, scores, true, routes)?;
        self.begin_share(bucket)?;
        if bucket <= gate_up.direct_rows(down) && !self.options.strict {
            return kernels.direct(bucket, count, routes, x, gate_up, down, activation, middle, residual);
        }
        let room = Room { gathered, middle, results };
        kernels.grouped(bucket, count, routes, x, gate_up, down, activation, room, residual)
    }

    fn product(
        &self,
        bucket: usize,
        x: &Buffer<bf16>,
        linear: &Linear,
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        let (bias, count) = (linear.bias.as_ref(), &self.meta.rows);
        let weight = match &linear.weight {
            Weight::Wide(matrix) => return self.multiply(bucket, count, x, matrix, bias, finish),
            Weight::Narrow(weight) => weight,
        };
        let narrow = self.kernels.narrow.as_ref().expect("bug: packed weights without their kernels");
        if self.options.strict || bucket > weightonly::MAX_ROWS {
            return narrow.many.launch(bucket, count, x, weight, bias, finish);
        }
        narrow.few.launch(bucket, count, x, weight, bias, finish)
    }

    /// Few rows by the kernels that stream the weight, unless the bits are to be those of many rows.
    fn multiply(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        x: &Buffer<bf16>,
        weight: &Matrix,
        bias: Option<&Buffer<f32>>,
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        let Matrix { numbers, rows, cols } = weight;
        if self.options.strict || bucket > skinny::MAX_ROWS {
            let shape = (*rows, *cols);
            return match &self.kernels.hopper {
                Some(hopper) if hopper.takes(bucket, *rows) => {
                    hopper.launch(bucket, count, x, numbers, shape, bias, finish)
                }
                _ => self.kernels.product.launch(bucket, count, x, numbers, shape, bias, finish),
            };
        }
        // A block for four rows of the weight where they are few: more warps are under way.
        let class = if *rows <= FEW_OUTPUTS { Class::Block } else { Class::Warp };
        self.kernels.skinny.finish(class, (bucket, *rows, *cols), x, numbers, bias, finish)
    }
}
