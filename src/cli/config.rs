//! `hearth config`: check the settings, show them.

use std::io::Write;

use clap::Subcommand;

use super::{CliError, Common};
use crate::config::{KEYS, Kind, Layers, Settings, UpstreamEntry, names, schema};

#[derive(Subcommand)]
pub enum Verb {
    /// Read all settings and say whether they are valid
    Check {
        /// Say nothing when they are
        #[arg(long)]
        quiet: bool,
    },
    /// Print the JSON Schema of the settings file
    Schema,
    /// Print all settings
    Show {
        /// Say where each value came from
        #[arg(long)]
        origin: bool,
    },
}

pub fn run(verb: Verb, common: &Common) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match verb {
        Verb::Show { origin } => show(&mut out, common, origin)?,
        Verb::Schema => writeln!(out, "{:#}", schema::schema())?,
        Verb::Check { quiet } => {
            let settings = checked(&common.layers()?)?;
            if !quiet {
                writeln!(out, "the settings are valid; {} models are configured", settings.models.len())?;
            }
        }
    }
    Ok(())
}

fn checked(layers: &Layers) -> Result<Settings, CliError> {
    let settings = Settings::of(layers)?;
    if !settings.models.is_empty() || !settings.upstreams.is_empty() {
        names::check(&settings)?;
    }
    Ok(settings)
}

/// All settings, secrets as `***`; with where each came from, if that is asked for.
pub fn show(out: &mut impl Write, common: &Common, origin: bool) -> Result<(), CliError> {
    let layers = common.layers()?;
    let settings = checked(&layers)?;
    let mut section = "";
    for key in KEYS {
        let (of, name) = key.name.split_once('.').expect("bug: a setting without a section");
        if of != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            writeln!(out, "{gap}[{of}]")?;
            section = of;
        }
        let value = layers.text(key.name);
        let shown = match key.kind {
            Kind::Secret if !value.is_empty() => "\"***\"".to_owned(),
            Kind::Number(..) | Kind::Switch => value.to_owned(),
            _ => format!("{value:?}"),
        };
        let from = if origin { format!("from {}; ", layers.origin(key.name)) } else { String::new() };
        writeln!(out, "{name} = {shown}  # {from}{}", key.about)?;
    }
    for model in &settings.models {
        writeln!(
            out,
            "\n[[model]]{}",
            if origin { format!("  # from {}", model.origin) } else { String::new() }
        )?;
        writeln!(out, "name = {:?}", model.name)?;
        if let Some(path) = &model.path {
            writeln!(out, "path = {:?}", path.display().to_string())?;
        }
        if !model.aliases.is_empty() {
            writeln!(out, "aliases = {:?}", model.aliases)?;
        }
        if let Some(family) = model.family {
            writeln!(out, "family = {:?}", family.name())?;
        }
        writeln!(out, "quantize = {:?}", model.quantize.as_deref().unwrap_or("none"))?;
        writeln!(out, "context = {}", model.context)?;
        writeln!(out, "kv = {}", model.kv)?;
        writeln!(out, "kv_type = {:?}", if model.fp8_kv { "fp8" } else { "auto" })?;
        writeln!(out, "replicas = {}", model.replicas)?;
    }
    for upstream in &settings.upstreams {
        show_upstream(out, upstream, origin)?;
    }
    Ok(())
}

fn show_upstream(out: &mut impl Write, upstream: &UpstreamEntry, origin: bool) -> Result<(), CliError> {
    let from = if origin { format!("  # from {}", upstream.origin) } else { String::new() };
    writeln!(out, "\n[[upstream]]{from}")?;
    writeln!(out, "name = {:?}", upstream.name)?;
    writeln!(out, "url = {:?}", upstream.url.to_string())?;
    let models: Vec<String> = upstream.models.iter().map(|(here, there)| format!("{here}={there}")).collect();
    writeln!(out, "models = {models:?}")?;
    writeln!(out, "aliases = {:?}", upstream.aliases)?;
    if upstream.key.is_some() {
        writeln!(out, "key = \"***\"")?;
    }
    if let Some(path) = &upstream.key_file {
        writeln!(out, "key_file = {:?}", path.display().to_string())?;
    }
    writeln!(out, "family = {:?}", upstream.family.name())?;
    if !upstream.fill.is_empty() {
        writeln!(out, "fill = {:?}", upstream.fill)?;
    }
    writeln!(out, "context = {}", upstream.context)?;
    writeln!(out, "concurrent = {}", upstream.concurrent)?;
    writeln!(out, "connect_timeout = {}", upstream.connect_timeout.as_secs())?;
    writeln!(out, "idle_timeout = {}", upstream.idle_timeout.as_secs())?;
    writeln!(out, "timeout = {}", upstream.timeout.as_secs())?;
    if let Some(path) = &upstream.ca_file {
        writeln!(out, "ca_file = {:?}", path.display().to_string())?;
    }
    if !upstream.url.guarded() {
        writeln!(out, "plain = true")?;
    }
    Ok(())
}
