//! The names that requests may give: each means one model.

use super::{ConfigError, ModelEntry, Settings, UpstreamEntry};
use crate::nearest::nearest;

/// Whether every name and alias means one model, and the default models are among them.
pub fn check(settings: &Settings) -> Result<(), ConfigError> {
    let of_model = |m: &ModelEntry| (vec![m.name.clone()], m.aliases.clone(), m.origin.clone());
    let of_upstream = |u: &UpstreamEntry| {
        (u.models.iter().map(|(here, _)| here.clone()).collect(), u.aliases.clone(), u.origin.clone())
    };
    let entries = settings.models.iter().map(of_model).chain(settings.upstreams.iter().map(of_upstream));
    let mut known: Vec<String> = Vec::new();
    for (names, aliases, origin) in entries {
        for name in names.into_iter().chain(aliases) {
            if known.contains(&name) {
                let what = format!("two models are named {name}");
                let fix = "change one of the names, aliases or `models` of the upstreams";
                return Err(ConfigError::new(&origin, what, fix));
            }
            known.push(name);
        }
    }
    for (setting, name, origin) in &settings.defaults {
        if !name.is_empty() && !known.contains(name) {
            let fix = match nearest(name, known.iter().map(String::as_str)) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("the models are {}", known.join(", ")),
            };
            let what = format!("`{setting}` is {name:?}, and no model has that name");
            return Err(ConfigError::new(origin, what, fix));
        }
    }
    Ok(())
}
