//! The settings file as a JSON Schema, for editors and for whoever generates the file.

use serde_json::{Map, Value, json};

use super::keys::{KEYS, Key, Kind, MODEL_KEYS, UPSTREAM_KEYS};

/// All sections, from the tables that the file is read by.
pub fn schema() -> Value {
    let mut sections: Map<String, Value> = Map::new();
    for key in KEYS {
        let (section, name) = key.name.split_once('.').expect("bug: a setting without a section");
        let section = sections.entry(section).or_insert_with(|| object(Map::new()));
        section["properties"][name] = value(key);
    }
    for (name, keys) in [("model", MODEL_KEYS), ("upstream", UPSTREAM_KEYS)] {
        let entry = object(keys.iter().map(|key| (key.name.to_owned(), value(key))).collect());
        sections.insert(name.to_owned(), json!({"type": "array", "items": entry}));
    }
    let mut schema = object(sections);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = concat!("hearth.toml of hearth ", env!("CARGO_PKG_VERSION")).into();
    schema
}

fn object(properties: Map<String, Value>) -> Value {
    json!({"type": "object", "properties": properties, "additionalProperties": false})
}

fn value(key: &Key) -> Value {
    let text = json!({"type": "string"});
    let texts = json!({"type": "array", "items": text});
    let mut schema = match key.kind {
        Kind::Number(low, high) => json!({"type": "integer", "minimum": low, "maximum": high}),
        Kind::Switch => json!({"type": "boolean"}),
        Kind::Choice(words) => json!({"type": "string", "enum": words}),
        Kind::Size | Kind::SizeWithin(..) => json!({"anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]+ *([bB]|[kKmMgGtT]([iI][bB])?)?$"},
        ]}),
        Kind::Addresses | Kind::Networks | Kind::List => json!({"anyOf": [texts, text]}),
        Kind::OptionalAddress | Kind::Path | Kind::Secret | Kind::Text | Kind::Url => text,
    };
    if let Kind::SizeWithin(low, high) = key.kind {
        (schema["anyOf"][0]["minimum"], schema["anyOf"][0]["maximum"]) = (low.into(), high.into());
    }
    schema["description"] = key.about.into();
    schema["default"] = match key.kind {
        Kind::Number(..) => key.default.parse::<u64>().expect("bug: a default that is no number").into(),
        Kind::Switch => (key.default == "true").into(),
        _ => key.default.into(),
    };
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_in_it_with_its_default_and_what_it_is_for() {
        let schema = schema();
        for key in KEYS {
            let (section, name) = key.name.split_once('.').unwrap();
            let of = &schema["properties"][section]["properties"][name];
            assert_eq!(of["description"], key.about, "{}", key.name);
            assert!(!of["default"].is_null(), "{}", key.name);
        }
        for key in MODEL_KEYS {
            let of = &schema["properties"]["model"]["items"]["properties"][key.name];
            assert_eq!(of["description"], key.about, "{}", key.name);
        }
        assert_eq!(schema["properties"]["server"]["additionalProperties"], false);
        assert_eq!(schema["properties"]["engine"]["properties"]["sequences"]["maximum"], 65_536);
    }
}
