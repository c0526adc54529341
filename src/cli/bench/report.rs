//! `hearth bench report`: files of results as a page, or as rows of a table.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use super::unwritten;
use crate::bench::result::{Results, keep};
use crate::bench::{report, sizing};
use crate::cli::{CliError, Exit};

#[derive(Args)]
pub struct Report {
    /// Files that `hearth bench serve` or `hearth bench sweep` wrote
    #[arg(value_name = "FILE.json", required = true)]
    files: Vec<PathBuf>,
    /// Where the page goes; standard output without it
    #[arg(long, short, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Say whether so many users of GitLab fit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..1_000_000_000))]
    gitlab_users: Option<u64>,
    /// Print a table in Markdown instead, a row for each file
    #[arg(long, conflicts_with = "output")]
    table: bool,
}

impl Report {
    pub fn run(&self) -> Result<(), CliError> {
        let read = |path: &PathBuf| Ok((path.display().to_string(), Results::read(path).map_err(unwritten)?));
        let files = self.files.iter().map(read).collect::<Result<Vec<_>, CliError>>()?;
        let mut out = std::io::stdout().lock();
        if self.table {
            out.write_all(sizing::table(&files).as_bytes())?;
            return Ok(());
        }
        let page = report::page(&files, self.gitlab_users);
        match &self.output {
            Some(path) => {
                keep(path, page.as_bytes()).map_err(unwritten)?;
                if let Some(users) = self.gitlab_users {
                    for (_, results) in &files {
                        writeln!(out, "{}", sizing::sentence(results, users))?;
                    }
                }
            }
            None if std::io::stdout().is_terminal() => {
                return Err(CliError::new(Exit::Usage, "the page would fill this terminal")
                    .fix("give -o report.html"));
            }
            None => out.write_all(page.as_bytes())?,
        }
        Ok(())
    }
}
