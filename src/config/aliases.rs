//! Environment variables of GitLab's own gateway, so that its settings can stay where they are. `HEARTH__…` wins over
//! them; what has no counterpart here is named in the log and not used.

/// A variable, the setting it means, and how its values are said here.
struct Alias {
    variable: &'static str,
    key: &'static str,
    read: fn(&str) -> Result<Option<String>, &'static str>,
}

/// What a variable says.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A setting and its value.
    Set(&'static str, String),
    /// What is so without it.
    Nothing,
    /// No setting of ours.
    Unused,
}

const fn alias(
    variable: &'static str,
    key: &'static str,
    read: fn(&str) -> Result<Option<String>, &'static str>,
) -> Alias {
    Alias { variable, key, read }
}

/// In the order in which they are applied: of the ways past the check of tokens, the widest counts.
const ALIASES: &[Alias] = &[
    alias("AIGW_GITLAB_URL", "gitlab.url", same),
    alias("AIGW_CUSTOMER_PORTAL_URL", "gitlab.portal_url", same),
    alias("AIGW_CLOUD_CONNECTOR_SERVICE_NAME", "gitlab.audience", same),
    alias("AIGW_SELF_SIGNED_JWT__SIGNING_KEY", "gitlab.signing_key", same),
    alias("AIGW_SELF_SIGNED_JWT__VALIDATION_KEY", "gitlab.validation_key", same),
    alias("AIGW_AUTH__BYPASS_JWT_SIGNATURE", "gitlab.bypass", |v| when(v, "signature")),
    alias("AIGW_AUTH__BYPASS_EXTERNAL_WITH_HEADER", "gitlab.bypass", |v| when(v, "header")),
    alias("AIGW_AUTH__BYPASS_EXTERNAL", "gitlab.bypass", |v| when(v, "all")),
    alias("AIGW_CUSTOM_MODELS__DISABLE_STREAMING", "duo.streaming", |v| when(v, "false")),
    alias("AIGW_LOGGING__LEVEL", "log.level", level),
];

/// All variables that are ours to read, in the order in which they are applied, and the rest.
pub fn rank(variable: &str) -> usize {
    ALIASES.iter().position(|alias| alias.variable == variable).unwrap_or(ALIASES.len())
}

/// What a variable that begins with `AIGW_` means; the error says what its value must be.
pub fn meaning(variable: &str, value: &str) -> Result<Meaning, &'static str> {
    let Some(alias) = ALIASES.iter().find(|alias| alias.variable == variable) else {
        return Ok(Meaning::Unused);
    };
    Ok((alias.read)(value)?.map_or(Meaning::Nothing, |value| Meaning::Set(alias.key, value)))
}

fn same(value: &str) -> Result<Option<String>, &'static str> {
    Ok(Some(value.to_owned()).filter(|value| !value.is_empty()))
}

/// A value for a switch that is on.
fn when(switch: &str, value: &str) -> Result<Option<String>, &'static str> {
    match switch.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Ok(Some(value.to_owned())),
        "0" | "false" | "f" | "no" | "n" | "off" | "" => Ok(None),
        _ => Err("true or false"),
    }
}

fn level(value: &str) -> Result<Option<String>, &'static str> {
    Ok(match value.trim().to_ascii_lowercase().as_str() {
        "" => None,
        "warning" => Some("warn".to_owned()),
        "critical" | "fatal" => Some("error".to_owned()),
        "notset" => Some("trace".to_owned()),
        level => Some(level.to_owned()),
    })
}
