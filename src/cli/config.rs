//! `hearth config`: check the settings, show them.

use std::io::Write;

use clap::Subcommand;

use super::{CliError, Common};
use crate::config::{KEYS, Kind, Settings};

#[derive(Subcommand)]
pub enum Verb {
    /// Read all settings and say whether they are valid
    Check,
    /// Print all settings
    Show {
        /// Say where each value came from
        #[arg(long)]
        origin: bool,
    },
}

pub fn run(verb: Verb, common: &Common) -> Result<(), CliError> {
    let layers = common.layers()?;
    let settings = Settings::of(&layers)?;
    let mut out = std::io::stdout().lock();
    let Verb::Show { origin } = verb else {
        writeln!(out, "the settings are valid; {} models are configured", settings.models.len())?;
        return Ok(());
    };
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
        writeln!(out, "quantize = {:?}", model.quantize.as_deref().unwrap_or("none"))?;
        writeln!(out, "context = {}", model.context)?;
        writeln!(out, "kv = {}", model.kv)?;
    }
    Ok(())
}
