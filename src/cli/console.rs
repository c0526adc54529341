//! `hearth console`: a way into the console that works once.

use std::io::Write;

use axum::http::Method;
use clap::Args;

use super::admin::{Line, Which};
use super::{CliError, Common};

#[derive(Args)]
pub struct Console {
    #[command(flatten)]
    which: Which,
}

pub fn run(verb: Console, common: &Common) -> Result<(), CliError> {
    let settings = verb.which.settings(common)?;
    let link = super::runtime()?
        .block_on(async { Line::open(&settings).await?.ask(Method::POST, "/admin/link", None).await })?;
    writeln!(std::io::stdout(), "{}", link["url"].as_str().unwrap_or_default())?;
    eprintln!("open it within 10 minutes; it works once");
    Ok(())
}
