//! Typed reading of a JSON object that remembers which keys were read, so that none is ignored by accident.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::SpecError;

/// A JSON object of a checkpoint and the keys of it that somebody asked for.
pub(super) struct Fields<'a> {
    /// In front of a key in messages: empty, or `text_config.`
    at: String,
    map: &'a Map<String, Value>,
    read: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Fields<'a> {
    pub fn new(at: &str, value: &'a Value) -> Result<Self, SpecError> {
        let map = value.as_object().ok_or_else(|| SpecError::Type {
            field: if at.is_empty() { "the top level".into() } else { at.trim_end_matches('.').into() },
            value: brief(value),
            wanted: "an object",
        })?;
        Ok(Self { at: at.into(), map, read: RefCell::default() })
    }

    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.at)
    }

    /// The value of a key; `null` counts as absent, as it does in the reference.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let (name, value) = self.map.get_key_value(key)?;
        self.read.borrow_mut().insert(name);
        (!value.is_null()).then_some(value)
    }

    /// Whether the key is there at all, `null` included.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    fn typed<T>(
        &self,
        key: &str,
        wanted: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, SpecError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| SpecError::Type {
            field: self.name(key),
            value: brief(value),
            wanted,
        })
    }

    /// A whole number in `1..=limit`.
    pub fn count(&self, key: &str, limit: usize) -> Result<Option<usize>, SpecError> {
        let Some(value) = self.typed(key, "a whole number", whole)? else { return Ok(None) };
        match usize::try_from(value) {
            Ok(n) if (1..=limit).contains(&n) => Ok(Some(n)),
            _ => Err(SpecError::Limit {
                field: self.name(key),
                value: value.to_string(),
                limit: format!("1 to {limit}"),
            }),
        }
    }

    pub fn required(&self, key: &str, limit: usize) -> Result<usize, SpecError> {
        self.count(key, limit)?.ok_or_else(|| SpecError::Missing { field: self.name(key) })
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, SpecError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, SpecError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A finite number above zero.
    pub fn positive(&self, key: &str) -> Result<Option<f64>, SpecError> {
        let Some(value) = self.typed(key, "a number", Value::as_f64)? else { return Ok(None) };
        if value.is_finite() && value > 0.0 {
            return Ok(Some(value));
        }
        Err(SpecError::Limit { field: self.name(key), value: value.to_string(), limit: "above 0".into() })
    }

    /// A token id or a list of them, each below `vocab`.
    pub fn tokens(&self, key: &str, vocab: usize) -> Result<Option<Vec<u32>>, SpecError> {
        let wanted = "a token id or a list of token ids";
        let Some(ids) = self.typed(key, wanted, |value| match value {
            Value::Array(items) => items.iter().map(whole).collect(),
            other => Some(vec![whole(other)?]),
        })?
        else {
            return Ok(None);
        };
        let fits = |id: &u64| usize::try_from(*id).is_ok_and(|id| id < vocab);
        if let Some(id) = ids.iter().find(|id| !fits(id)) {
            return Err(SpecError::Limit {
                field: self.name(key),
                value: id.to_string(),
                limit: format!("below the vocabulary's {vocab}"),
            });
        }
        Ok(Some(ids.iter().map(|id| *id as u32).collect()))
    }

    /// An object inside this one.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>, SpecError> {
        self.get(key).map(|value| Fields::new(&format!("{}.", self.name(key)), value)).transpose()
    }

    /// Rotary positions turn whole heads here; the key stands at the top or, in newer files, with the other rope keys.
    pub fn refuse_partial_rotation(&self) -> Result<(), SpecError> {
        match self.positive("partial_rotary_factor")? {
            Some(part) if part != 1.0 => Err(SpecError::Unsupported {
                field: self.name("partial_rotary_factor"),
                value: part.to_string(),
                supported: "1".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses a switch that is on and that no supported model has.
    pub fn refuse_on(&self, key: &str) -> Result<(), SpecError> {
        match self.get(key) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(value) => Err(SpecError::Unsupported {
                field: self.name(key),
                value: brief(value),
                supported: "false or absent".into(),
            }),
        }
    }

    /// Ends the reading: whatever was not read, is not null and is not known to be harmless is an error.
    pub fn finish(self, harmless: &[&str]) -> Result<(), SpecError> {
        let read = self.read.borrow();
        for (key, value) in self.map {
            let known = read.contains(key.as_str())
                || value.is_null()
                || key.starts_with('_')
                || harmless.contains(&key.as_str());
            if !known {
                return Err(SpecError::Unknown { field: self.name(key), value: brief(value) });
            }
        }
        Ok(())
    }
}

/// A whole number, also when it was written as `1000000.0`.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let float = value.as_f64()?;
        (float >= 0.0 && float < 2f64.powi(53) && float.fract() == 0.0).then_some(float as u64)
    })
}

/// A value as it goes into a message: short whatever the file holds.
pub(super) fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_in_a_message_is_cut_between_characters() {
        let long = json!("é".repeat(200));
        assert!(brief(&long).ends_with("..."));
        assert!(brief(&long).chars().count() < 70);
    }

    #[test]
    fn a_whole_number_may_be_written_as_a_float_but_not_have_a_fraction() {
        assert_eq!(whole(&json!(1000000.0)), Some(1_000_000));
        assert_eq!(whole(&json!(1.5)), None);
        assert_eq!(whole(&json!(-1)), None);
        assert_eq!(whole(&json!("7")), None);
    }
}
