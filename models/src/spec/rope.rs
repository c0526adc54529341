//! Rotary positions: which frequencies a checkpoint turns its heads by.

use std::f64::consts::PI;

use super::SpecError;
use super::fields::Fields;

/// Base and scaling of the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Rope {
    pub theta: f64,
    pub scaling: Scaling,
}

/// How frequencies are stretched beyond the context the model was first trained for.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Scaling {
    None,
    /// All frequencies divided by `factor` (Chen et al. 2023, arXiv:2306.15595). DeepSeek Coder.
    Linear {
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a smooth passage between. Llama 3.1.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: usize,
    },
}

impl Rope {
    /// Inverse frequencies of a head of `dim` values, `dim / 2` of them. Rounded to f32 where the reference rounds:
    /// at position 16,000 one unit in the last place is a milliradian.
    pub fn inverse_frequencies(&self, dim: usize) -> Vec<f32> {
        (0..dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / dim as f32;
                let frequency = 1.0 / ((self.theta).powf(f64::from(exponent)) as f32);
                match self.scaling {
                    Scaling::None => frequency,
                    Scaling::Linear { factor } => frequency / factor as f32,
                    Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                        let original = original_context as f64;
                        let wavelength = 2.0 * PI / f64::from(frequency);
                        if wavelength > original / low_freq_factor {
                            return frequency / factor as f32;
                        }
                        if wavelength < original / high_freq_factor {
                            return frequency;
                        }
                        let smooth =
                            (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        let frequency = f64::from(frequency);
                        ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
                    }
                }
            })
            .collect()
    }

    /// Reads `rope_theta` and `rope_scaling`, or `rope_parameters` as newer files have it.
    pub(super) fn read(fields: &Fields<'_>, default_theta: f64) -> Result<Rope, SpecError> {
        let theta = fields.positive("rope_theta")?;
        let old = fields.object("rope_scaling")?;
        let new = fields.object("rope_parameters")?;
        let mut rope = Rope { theta: theta.unwrap_or(default_theta), scaling: Scaling::None };
        if let Some(old) = old {
            rope.scaling = scaling(&old)?;
            if let Some(inner) = old.positive("rope_theta")? {
                agree(&old, "rope_theta", inner, theta)?;
                rope.theta = inner;
            }
            old.finish(&[])?;
        }
        if let Some(new) = new {
            let before = rope.scaling;
            let found = scaling(&new)?;
            if before != Scaling::None && before != found {
                return Err(SpecError::Contradiction {
                    field: fields.name("rope_parameters"),
                    value: format!("{found:?}"),
                    other: fields.name("rope_scaling"),
                    limit: format!("{before:?}"),
                });
            }
            rope.scaling = found;
            if let Some(inner) = new.positive("rope_theta")? {
                agree(&new, "rope_theta", inner, theta)?;
                rope.theta = inner;
            }
            new.finish(&[])?;
        }
        if rope.theta <= 1.0 || rope.theta > 1e15 {
            return Err(SpecError::Limit {
                field: fields.name("rope_theta"),
                value: rope.theta.to_string(),
                limit: "above 1, at most 1e15".into(),
            });
        }
        Ok(rope)
    }
}

fn agree(inner: &Fields<'_>, key: &str, value: f64, outer: Option<f64>) -> Result<(), SpecError> {
    match outer {
        Some(outer) if outer != value => Err(SpecError::Contradiction {
            field: inner.name(key),
            value: value.to_string(),
            other: key.into(),
            limit: outer.to_string(),
        }),
        _ => Ok(()),
    }
}

fn scaling(fields: &Fields<'_>) -> Result<Scaling, SpecError> {
    let (new, old) = (fields.text("rope_type")?, fields.text("type")?);
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        return Err(SpecError::Contradiction {
            field: fields.name("rope_type"),
            value: new.into(),
            other: fields.name("type"),
            limit: old.into(),
        });
    }
    fields.refuse_partial_rotation()?;
    let required =
        |key: &str| fields.positive(key)?.ok_or_else(|| SpecError::Missing { field: fields.name(key) });
    match new.or(old).unwrap_or("default") {
        "default" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: required("factor")? }),
        "llama3" => {
            let factor = required("factor")?;
            let low = required("low_freq_factor")?;
            let high = required("high_freq_factor")?;
            let original_context = fields.required("original_max_position_embeddings", 1 << 24)?;
            if high <= low {
                return Err(SpecError::Contradiction {
                    field: fields.name("high_freq_factor"),
                    value: high.to_string(),
                    other: fields.name("low_freq_factor"),
                    limit: low.to_string(),
                });
            }
            Ok(Scaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context })
        }
        other => Err(SpecError::Unsupported {
            field: fields.name(if new.is_some() { "rope_type" } else { "type" }),
            value: other.into(),
            supported: "default, linear, llama3".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_fast_turns_and_slows_the_slow_ones() {
        let plain = Rope { theta: 500_000.0, scaling: Scaling::None }.inverse_frequencies(128);
        let scaling = Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let scaled = Rope { theta: 500_000.0, scaling }.inverse_frequencies(128);
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[63] / 8.0, scaled[63]);
        assert!(plain.iter().zip(&scaled).any(|(p, s)| *s < *p && *s > p / 8.0), "a passage lies between");
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = Rope { theta: 10_000.0, scaling: Scaling::None }.inverse_frequencies(8);
        let scaled =
            Rope { theta: 10_000.0, scaling: Scaling::Linear { factor: 4.0 } }.inverse_frequencies(8);
        assert_eq!(plain.iter().map(|f| f / 4.0).collect::<Vec<_>>(), scaled);
    }
}
