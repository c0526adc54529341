//! How a model lies in memory: candle's blocks everywhere, and what GPUs alone have of formats of weights, keys and values.

use hearth_kernels::cuda::attention::serves_e4m3;
use hearth_kernels::cuda::weightonly::Format;
use hearth_kernels::{Heads, Quantize};
use hearth_models::decoder::Options;
use hearth_models::device::{self, KvType};
use hearth_models::spec::Spec;

use super::Unfit;
use crate::config::{ModelEntry, Settings};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    /// Where it is served on the CPU.
    pub processor: Option<Quantize>,
    /// Where it is served on a GPU.
    pub gpu: Option<Format>,
    pub kv: KvType,
    pub strict: bool,
}

impl Packing {
    /// What `quantize` and `kv_type` mean where the model is served. What that place has not is refused, before
    /// anything is read.
    pub fn of(entry: &ModelEntry, settings: &Settings, on_gpu: bool, spec: &Spec) -> Result<Self, Unfit> {
        let heads = Heads { q: spec.heads, kv: spec.kv_heads, dim: spec.head_dim };
        let asked = Asked { quantize: entry.quantize.as_deref(), fp8_kv: entry.fp8_kv };
        let packing = asked.on(on_gpu, heads).map_err(|(what, fix)| {
            let what = format!("model {}: {what}", entry.name);
            Unfit::Settings { what, place: Some(entry.origin.to_string()), fix: fix.to_owned() }
        })?;
        Ok(Self { strict: settings.strict, ..packing })
    }

    /// The same model's options on a GPU.
    pub fn on_gpu(self, options: &Options) -> device::Options {
        let Options { rows, logits, context, blocks, .. } = *options;
        let Self { gpu, kv, strict, .. } = self;
        device::Options { quantize: gpu, kv, rows, logits, context, blocks, strict, graphs: true }
    }
}

#[derive(Clone, Copy)]
struct Asked<'a> {
    quantize: Option<&'a str>,
    fp8_kv: bool,
}

impl Asked<'_> {
    /// Refused with what is wrong and what would do.
    fn on(self, on_gpu: bool, heads: Heads) -> Result<Packing, (String, &'static str)> {
        let kv = match self.fp8_kv {
            false => KvType::Bf16,
            true if !on_gpu => {
                return Err((
                    "`kv_type` is \"fp8\", which GPUs have; this model is served on the CPU".to_owned(),
                    "leave `kv_type` out: on the CPU keys and values have the checkpoint's type",
                ));
            }
            true if !serves_e4m3(heads) => {
                return Err((
                    format!("`kv_type` is \"fp8\"; heads of {} numbers are not served so", heads.dim),
                    "leave `kv_type` out; heads of 128 and 256 have it",
                ));
            }
            true => KvType::Fp8,
        };
        let Some(name) = self.quantize else { return Ok(Packing { kv, ..Packing::default() }) };
        let format = Format::ALL.into_iter().find(|format| format.title() == name);
        let format = format.unwrap_or_else(|| panic!("bug: {name} passed the table of settings"));
        match (on_gpu, format.blocks()) {
            (false, None) => Err((
                format!("`quantize` is {name:?}, a format of GPUs; this model is served on the CPU"),
                "on the CPU there are q8_0, q6_k and q4_k",
            )),
            (false, processor) => Ok(Packing { processor, gpu: None, kv, strict: false }),
            (true, _) => Ok(Packing { processor: None, gpu: Some(format), kv, strict: false }),
        }
    }
}

/// The type of a model's weights, and what becomes of it where the model is served.
pub fn format_of(dtype: &str, entry: &ModelEntry, on_gpu: bool) -> String {
    let weights = match (&entry.quantize, on_gpu && lost_on_a_gpu(dtype).is_some()) {
        (Some(packed), _) => format!("{dtype} packed to {packed}"),
        (None, true) => format!("{dtype} rounded to bf16"),
        (None, false) => dtype.to_owned(),
    };
    if entry.fp8_kv { format!("{weights}, keys and values in fp8") } else { weights }
}

/// What becomes of weights of a type that no GPU kernel multiplies; `None` where they stay as they are.
pub fn lost_on_a_gpu(dtype: &str) -> Option<&'static str> {
    match dtype {
        "f16" => Some(
            "its weights are f16 and are rounded to bf16 on the GPU, 8 significant bits of 11: as near as a bf16 \
             checkpoint is; on the CPU they stay f16",
        ),
        "f32" => Some(
            "its weights are f32 and are rounded to bf16 on the GPU, 8 significant bits of 24, in half the memory; on \
             the CPU they stay f32",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { q: 8, kv: 2, dim: 128 };

    fn asked(quantize: Option<&str>, fp8_kv: bool) -> Asked<'_> {
        Asked { quantize, fp8_kv }
    }

    #[test]
    fn candles_formats_are_everywhere_and_those_of_gpus_are_refused_on_the_processor_by_name() {
        let packed = |name, on_gpu| asked(Some(name), false).on(on_gpu, HEADS);
        for (name, format) in [("int8", Format::Int8), ("fp8", Format::E4m3), ("int4", Format::Int4)] {
            assert_eq!(packed(name, true).unwrap().gpu, Some(format));
            let (what, fix) = packed(name, false).unwrap_err();
            assert!(what.contains(name) && fix.contains("q8_0"), "{what}: {fix}");
        }
        let blocks =
            [(Quantize::Q8_0, Format::Q8_0), (Quantize::Q6K, Format::Q6K), (Quantize::Q4K, Format::Q4K)];
        for (processor, gpu) in blocks {
            let name = processor.name();
            let one = Packing { processor: Some(processor), ..Packing::default() };
            let other = Packing { gpu: Some(gpu), ..Packing::default() };
            assert_eq!((packed(name, false), packed(name, true)), (Ok(one), Ok(other)));
        }
        assert_eq!(asked(None, false).on(true, HEADS), Ok(Packing::default()));
    }

    #[test]
    fn keys_and_values_in_fp8_are_for_gpus_and_heads_that_have_kernels() {
        assert_eq!(asked(None, true).on(true, HEADS).unwrap().kv, KvType::Fp8);
        let (what, _) = asked(None, true).on(false, HEADS).unwrap_err();
        assert!(what.contains("served on the CPU"), "{what}");
        let (what, _) = asked(None, true).on(true, Heads { dim: 64, ..HEADS }).unwrap_err();
        assert!(what.contains("heads of 64"), "{what}");
    }
}
