//! Reading JSON without guessing (step 3 in the life of a request): a name that stands twice in an object is refused,
//! where most readers take one of the two in silence, and what is wrong is told with the field it stands at.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// Longer ones are cut in messages.
const SHOWN: usize = 100;

/// The value of a body.
pub fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let mut trail = Trail::default();
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Once(&mut trail).deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|e| trail.refusal(body, &e))
}

enum Step {
    Name(String),
    Item(usize),
}

/// Where the reader is; after a failure, where it was.
#[derive(Default)]
struct Trail {
    steps: Vec<Step>,
    twice: bool,
}

impl Trail {
    fn refusal(&self, body: &[u8], error: &serde_json::Error) -> ApiError {
        let mut place = String::new();
        for step in &self.steps {
            match step {
                Step::Name(name) if place.is_empty() => place += name,
                Step::Name(name) => place = format!("{place}.{name}"),
                Step::Item(i) => place = format!("{place}[{i}]"),
            }
            if place.len() > SHOWN {
                place = place.chars().take(SHOWN).collect();
                break;
            }
        }
        if self.twice {
            return ApiError::invalid(&place, format!("`{place}` stands twice in its object; send it once."));
        }
        let near = if place.is_empty() { String::new() } else { format!(" near `{place}`") };
        let advice = match no_number(body, error) {
            true => " JSON has no NaN and no infinity: send a finite number, or leave the field out.",
            false => "",
        };
        ApiError::body(format!("The body is not valid JSON{near}: {error}.{advice}"))
    }
}

/// Whether somebody wrote a number that JSON does not have.
fn no_number(body: &[u8], error: &serde_json::Error) -> bool {
    let line = body.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    // The reader may have stopped inside the word.
    let stop = error.column().saturating_sub(1).min(line.len());
    let letters = line[..stop].iter().rev().take_while(|b| b.is_ascii_alphabetic()).count();
    let word = line[stop - letters..].trim_ascii_start();
    let word = word.strip_prefix(b"-").unwrap_or(word);
    error.to_string().starts_with("number out of range")
        || [&b"NaN"[..], b"nan", b"Inf", b"inf"].iter().any(|known| word.starts_with(known))
}

/// Reads one value at the trail's end.
struct Once<'a>(&'a mut Trail);

impl<'de> DeserializeSeed<'de> for Once<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let depth = self.0.steps.len();
        self.0.steps.push(Step::Item(0));
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Once(&mut *self.0))? {
            list.push(item);
            self.0.steps[depth] = Step::Item(list.len());
        }
        self.0.steps.truncate(depth);
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let depth = self.0.steps.len();
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            self.0.steps.truncate(depth);
            self.0.steps.push(Step::Name(name.clone()));
            if object.contains_key(&name) {
                self.0.twice = true;
                return Err(A::Error::custom("a name stands twice"));
            }
            object.insert(name, fields.next_value_seed(Once(&mut *self.0))?);
        }
        self.0.steps.truncate(depth);
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> String {
        parse(body.as_bytes()).unwrap_err().message
    }

    #[test]
    fn values_are_those_of_serde_json() {
        for body in [
            "null",
            "[]",
            "{}",
            r#"{"a": [1, -2, 3.5, 1e3, 18446744073709551615, true, false, null, "x\né\ud83d\ude00"], "b": {"c": {}}}"#,
            "9007199254740993",
            " \"\\u0000\" ",
        ] {
            assert_eq!(
                parse(body.as_bytes()).unwrap(),
                serde_json::from_str::<Value>(body).unwrap(),
                "{body}"
            );
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_refused_with_its_place() {
        for (body, place) in [
            (r#"{"a": 1, "b": 2, "a": 1}"#, "a"),
            (r#"{"a": {"b": 1, "b": 2}}"#, "a.b"),
            (r#"{"m": [{"role": "x"}, {"role": "x", "role": "y"}]}"#, "m[1].role"),
            (r#"{"a": 1, "\u0061": 2}"#, "a"),
        ] {
            let error = parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(place), "{body}");
            assert!(error.message.contains(&format!("`{place}` stands twice")), "{}", error.message);
        }
        assert!(parse(br#"{"a": {"b": 1}, "c": {"b": 1}}"#).is_ok());
    }

    #[test]
    fn what_is_no_json_is_told_with_the_field_it_stands_at() {
        for (body, words) in [
            (r#"{"a": 1, "t": NaN}"#, "near `t`: expected value at line 1 column"),
            (r#"{"a": [1, {"b": tru}]}"#, "near `a[1].b`"),
            (r#"{"a": 1} x"#, "JSON: trailing characters"),
            ("", "JSON: EOF"),
        ] {
            assert!(message(body).contains(words), "{body}: {}", message(body));
        }
        for number in ["NaN", "nan", "-NaN", "Infinity", "-Infinity", "inf", "1e999", "-1e999"] {
            for body in
                [format!(r#"{{"t": {number}}}"#), format!("{{\"t\":\n{number} }}"), format!("[{number}]")]
            {
                assert!(message(&body).contains("send a finite number"), "{body}: {}", message(&body));
            }
        }
        assert!(!message(r#"{"t": tru}"#).contains("finite"));
        let long = format!(r#"{{"{}": x}}"#, "n".repeat(5000));
        assert!(message(&long).len() < 400);
    }
}
