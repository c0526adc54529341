//! How a model lies in memory: each place has its own formats of weights, keys and values.

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
    pub processor: Option<Quantize>,
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
        let processor = match name {
            "q8_0" => Some(Quantize::Q8_0),
            "q4_k" => Some(Quantize::Q4K),
            "q6_k" => Some(Quantize::Q6K),
            _ => None,
        };
        let gpu = Format::ALL.into_iter().find(|format| format.title() == name);
        assert!(processor.is_some() || gpu.is_some(), "bug: {name} passed the table of settings");
        match on_gpu {
            false if processor.is_none() => Err((
                format!("`quantize` is {name:?}, a format of GPUs; this model is served on the CPU"),
                "on the CPU there are q8_0, q6_k and q4_k",
            )),
            true if gpu.is_none() => Err((
                format!("`quantize` is {name:?}, a format of the CPU; this model is served on a GPU"),
                "on a GPU there are int8, fp8 and int4; or serve it on the CPU: --device cpu",
            )),
            _ => Ok(Packing { processor, gpu, kv, strict: false }),
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
    fn each_place_takes_its_own_formats_and_names_them_when_it_is_asked_for_the_others() {
        let packed = |name, on_gpu| asked(Some(name), false).on(on_gpu, HEADS);
        for (name, format) in [("int8", Format::Int8), ("fp8", Format::E4m3), ("int4", Format::Int4)] {
            assert_eq!(packed(name, true).unwrap().gpu, Some(format));
            let (what, fix) = packed(name, false).unwrap_err();
            assert!(what.contains(name) && fix.contains("q8_0"), "{what}: {fix}");
        }
        for name in ["q8_0", "q4_k", "q6_k"] {
            assert!(packed(name, false).unwrap().processor.is_some());
            let (what, fix) = packed(name, true).unwrap_err();
            assert!(what.contains(name) && fix.contains("int8"), "{what}: {fix}");
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
