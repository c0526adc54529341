//! Reading a request's JSON field by field: every field is taken by name, and what nobody took is refused by name.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::strict;
use crate::nearest::nearest;

/// The fields of one JSON object that were not read yet.
pub struct Fields {
    /// In front of the names in messages: `stream_options.`.
    path: String,
    map: Map<String, Value>,
    /// Every name that was asked for, for suggestions.
    known: Vec<&'static str>,
}

impl Fields {
    /// Of a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match strict::parse(body)? {
            Value::Object(map) => Ok(Self { path: String::new(), map, known: Vec::new() }),
            other => Err(ApiError::body(format!("The body must be a JSON object, not {}.", article(&other)))),
        }
    }

    /// Of an object inside a body.
    pub fn inside(path: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { path: format!("{path}."), map, known: Vec::new() }),
            other => Err(wrong(path, "an object", &other)),
        }
    }

    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// The value of a field; `null` is the same as leaving it out.
    pub fn take(&mut self, field: &'static str) -> Option<Value> {
        self.known.push(field);
        self.map.remove(field).filter(|v| !v.is_null())
    }

    pub fn string(&mut self, field: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.name(field), "a string", &other)),
        }
    }

    pub fn bool(&mut self, field: &'static str) -> Result<Option<bool>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong(&self.name(field), "true or false", &other)),
        }
    }

    /// A whole number within a range.
    pub fn integer(&mut self, field: &'static str, low: i64, high: i64) -> Result<Option<i64>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => integer(&self.name(field), &value, low, high).map(Some),
        }
    }

    /// A number within a range.
    pub fn number(&mut self, field: &'static str, low: f64, high: f64) -> Result<Option<f32>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => number(&self.name(field), &value, low, high).map(Some),
        }
    }

    /// A field that is understood and not honoured: only its neutral values pass.
    pub fn refuse(&mut self, field: &'static str, neutral: &[Value], advice: &str) -> Result<(), ApiError> {
        match self.take(field) {
            Some(value) if !neutral.contains(&value) => {
                let name = self.name(field);
                let shown = Some(value.to_string()).filter(|v| v.len() <= 60);
                let value = shown.map_or(String::new(), |v| format!(" = {v}"));
                Err(ApiError::unsupported(&name, format!("`{name}`{value} is not supported: {advice}")))
            }
            _ => Ok(()),
        }
    }

    /// Fields that change nothing about the answer.
    pub fn ignore(&mut self, fields: &[&'static str]) {
        for field in fields {
            self.take(field);
        }
    }

    /// Every field that was not taken, for a server that reads them itself.
    pub fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// What is left was not understood.
    pub fn finish(mut self) -> Result<(), ApiError> {
        let Some(field) = self.map.keys().next().cloned() else { return Ok(()) };
        let name = self.name(&field);
        let shown: String = name.chars().take(100).collect();
        self.known.sort_unstable();
        let message = match nearest(&field, self.known.iter().copied()) {
            Some(known) => format!("Unknown field `{shown}`; did you mean `{}`?", self.name(known)),
            None => format!("Unknown field `{shown}`; remove it. Known fields: {}.", self.known.join(", ")),
        };
        Err(ApiError::unknown(shown, message))
    }
}

pub fn wrong(name: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::invalid(name, format!("`{name}` must be {expected}, not {}.", article(found)))
}

pub fn integer(name: &str, value: &Value, low: i64, high: i64) -> Result<i64, ApiError> {
    let whole = value.as_i64().or_else(|| {
        // 1.0 is a whole number; so says JSON Schema, and some clients write it.
        value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64)
    });
    match whole {
        Some(number) if (low..=high).contains(&number) => Ok(number),
        _ if value.is_number() => {
            let message = format!("`{name}` must be a whole number, from {low} to {high}; it is {value}.");
            Err(ApiError::invalid(name, message))
        }
        _ => Err(wrong(name, "a whole number", value)),
    }
}

pub fn number(name: &str, value: &Value, low: f64, high: f64) -> Result<f32, ApiError> {
    match value.as_f64() {
        Some(number) if (low..=high).contains(&number) => Ok(number as f32),
        Some(_) => {
            Err(ApiError::invalid(name, format!("`{name}` must be from {low} to {high}; it is {value}.")))
        }
        None => Err(wrong(name, "a number", value)),
    }
}

fn article(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
