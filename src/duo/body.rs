//! Bodies of this dialect: JSON that is read as its original reads it. Unknown fields are ignored at every level, a
//! number may come as text and a switch as a word; a field that is missing, of another type or over its limit is 422.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Map, Value};

use super::client::verbose;
use super::error::DuoError;
use crate::openai::{BodyTimeout, Crowded, TooLarge, cause, caused_by};

/// A JSON object with its place in the body, for messages. The empty place is the body itself.
#[derive(Clone, Debug)]
pub struct Object {
    fields: Map<String, Value>,
    place: String,
    verbose: bool,
}

/// The JSON object in a request's body.
pub async fn read(request: Request) -> Result<Object, DuoError> {
    let verbose = verbose(request.headers());
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let json = kind.split(';').next().is_some_and(|k| k.trim().eq_ignore_ascii_case("application/json"));
    let bytes = collect(request.into_body()).await?;
    if !json {
        return Err(DuoError::validation("Content-Type", "must be application/json", verbose));
    }
    if std::str::from_utf8(&bytes).is_err() {
        return Err(DuoError::bad_request("There was an error parsing the body"));
    }
    match parse(bytes).await {
        Ok(Value::Object(fields)) => Ok(Object { fields, place: String::new(), verbose }),
        Ok(_) => Err(DuoError::validation("body", "must be an object", verbose)),
        Err(e) => Err(DuoError::validation("body", &format!("is not JSON: {e}"), verbose)),
    }
}

/// Long bodies are parsed where they do not hold up others: 8 MiB take some 50 ms.
async fn parse(bytes: bytes::Bytes) -> serde_json::Result<Value> {
    const LONG: usize = 256 << 10;
    if bytes.len() <= LONG {
        return serde_json::from_slice(&bytes);
    }
    let parsed = tokio::task::spawn_blocking(move || serde_json::from_slice(&bytes)).await;
    parsed.expect("bug: parsing JSON panics")
}

async fn collect(body: Body) -> Result<bytes::Bytes, DuoError> {
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if caused_by::<BodyTimeout>(&e) => {
            Err(DuoError::detail(StatusCode::REQUEST_TIMEOUT, "The request body did not arrive in time"))
        }
        Err(e) if caused_by::<Crowded>(&e) => Err(DuoError::crowded(&e.to_string())),
        Err(e) => Err(match cause::<TooLarge>(&e) {
            Some(TooLarge { limit }) => DuoError::too_large(*limit),
            None => DuoError::bad_request("There was an error parsing the body"),
        }),
    }
}

impl Object {
    /// An object that is not a request's own: for tests, and for values made here.
    pub fn new(fields: Map<String, Value>) -> Self {
        Self { fields, place: String::new(), verbose: false }
    }

    /// A refusal of one of the fields.
    pub fn wrong(&self, name: &str, problem: &str) -> DuoError {
        DuoError::validation(&self.path(name), problem, self.verbose)
    }

    fn path(&self, name: &str) -> String {
        match self.place.is_empty() {
            true => name.to_owned(),
            false => format!("{}.{name}", self.place),
        }
    }

    /// A field as it came; `null` is an absent one.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|v| !v.is_null())
    }

    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, DuoError> {
        value.ok_or_else(|| self.wrong(name, "is missing"))
    }

    /// Text of so many characters at most.
    pub fn string(&self, name: &str, limit: usize) -> Result<Option<String>, DuoError> {
        let text = match self.get(name) {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(_) => return Err(self.wrong(name, "must be a string")),
        };
        // Bytes bound characters from above, so most texts need no count.
        if text.len() > limit {
            let characters = text.chars().count();
            if characters > limit {
                let problem = format!("has {characters} characters; {limit} is the limit");
                return Err(self.wrong(name, &problem));
            }
        }
        Ok(Some(text.clone()))
    }

    pub fn required_string(&self, name: &str, limit: usize) -> Result<String, DuoError> {
        self.string(name, limit).and_then(|text| self.required(name, text))
    }

    /// A whole number, also as text.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, DuoError> {
        let number = match self.get(name) {
            None => return Ok(None),
            Some(Value::Number(n)) => {
                n.as_i64().or_else(|| n.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64))
            }
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(Value::Bool(b)) => Some(i64::from(*b)),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| self.wrong(name, "must be a whole number"))
    }

    /// A switch, also as a word or as 0 and 1.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, DuoError> {
        let word = match self.get(name) {
            None => return Ok(None),
            Some(Value::Bool(b)) => return Ok(Some(*b)),
            Some(Value::Number(n)) => n.to_string(),
            Some(Value::String(text)) => text.to_ascii_lowercase(),
            Some(_) => String::new(),
        };
        match word.as_str() {
            "1" | "true" | "t" | "yes" | "y" | "on" => Ok(Some(true)),
            "0" | "false" | "f" | "no" | "n" | "off" => Ok(Some(false)),
            _ => Err(self.wrong(name, "must be true or false")),
        }
    }

    pub fn object(&self, name: &str) -> Result<Option<Object>, DuoError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => {
                Ok(Some(Object { fields: fields.clone(), place: self.path(name), verbose: self.verbose }))
            }
            Some(_) => Err(self.wrong(name, "must be an object")),
        }
    }

    pub fn required_object(&self, name: &str) -> Result<Object, DuoError> {
        self.object(name).and_then(|object| self.required(name, object))
    }

    /// A list of so many entries at most.
    pub fn list(&self, name: &str, limit: usize) -> Result<Option<&[Value]>, DuoError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(list)) if list.len() > limit => {
                let problem = format!("has {} entries; {limit} is the limit", list.len());
                Err(self.wrong(name, &problem))
            }
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(name, "must be a list")),
        }
    }

    /// A list of objects, `[]` where there is none.
    pub fn objects(&self, name: &str, limit: usize) -> Result<Vec<Object>, DuoError> {
        let list = self.list(name, limit)?.unwrap_or_default();
        let object = |(i, value): (usize, &Value)| match value {
            Value::Object(fields) => Ok(Object {
                fields: fields.clone(),
                place: format!("{}[{i}]", self.path(name)),
                verbose: self.verbose,
            }),
            _ => Err(self.wrong(&format!("{name}[{i}]"), "must be an object")),
        };
        list.iter().enumerate().map(object).collect()
    }
}
