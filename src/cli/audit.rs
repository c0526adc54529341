//! `hearth audit`: read the audit log, and check its chain.

use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::{CliError, Common, Exit};
use crate::audit::{Audit, Checked, Damage, Entry, Head};
use crate::config::Settings;

#[derive(Subcommand)]
pub enum Verb {
    /// Check every record and the chain that they make
    Verify {
        /// A head that was noted earlier: the chain must go through it
        #[arg(long, value_name = "NUMBER:HASH")]
        head: Option<Head>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Where the log is kept
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
    /// Print records, oldest first
    Show {
        /// Only the last records
        #[arg(long, value_name = "N", default_value = "50")]
        last: usize,
        /// Only records of that event, like key_created
        #[arg(long, value_name = "EVENT")]
        event: Option<String>,
        /// Print a JSON object per line
        #[arg(long)]
        json: bool,
        /// Where the log is kept
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
}

pub fn run(verb: Verb, common: &Common) -> Result<(), CliError> {
    match verb {
        Verb::Verify { head, json, state_dir } => verify(&log(common, state_dir)?, head.as_ref(), json),
        Verb::Show { last, event, json, state_dir } => show(&log(common, state_dir)?, last, event, json),
    }
}

fn log(common: &Common, state_dir: Option<PathBuf>) -> Result<Audit, CliError> {
    let mut layers = common.layers()?;
    if let Some(directory) = state_dir {
        layers.flag("--state-dir", "server.state_dir", directory.display().to_string())?;
    }
    Ok(Audit::of(&Settings::of(&layers)?))
}

/// Reads all of its files. A log that is not there is one without records.
fn read(audit: &Audit, through: Option<&Head>, each: impl FnMut(Entry)) -> Result<Checked, CliError> {
    audit.check(through, each).map_err(|(path, damage)| {
        let (what, fix) = match damage {
            Damage::Read(e) => {
                (format!("the audit log cannot be read: {e}"), "run it as the server's user, or as root")
            }
            damage => (
                format!("the audit log was changed: {damage}"),
                "keep all of its files as evidence; what is before that line is whole. Once they are moved away, a new \
                 log begins",
            ),
        };
        CliError::new(Exit::Failed, what).at(path.display().to_string()).fix(fix)
    })
}

fn verify(audit: &Audit, noted: Option<&Head>, json: bool) -> Result<(), CliError> {
    let checked = read(audit, noted, |_| {})?;
    let begin = &checked.begin;
    if let Some(noted) = noted.filter(|noted| checked.passed == Some(false) && noted.number < begin.number) {
        let what = format!("{noted} is before the beginning of what is here: record {}", begin.number + 1);
        let fix =
            "put the older files (audit-N.jsonl) back beside the log, or check a head that was noted later";
        return Err(CliError::new(Exit::Failed, what).at(audit.path().display().to_string()).fix(fix));
    }
    if checked.passed == Some(false) {
        let noted = noted.map(Head::to_string).unwrap_or_default();
        let what = format!(
            "the audit log is a whole chain of {} records, but does not go through {noted}",
            checked.head.number
        );
        let fix = "it was cut off or written anew after that head was noted: keep the file as evidence";
        return Err(CliError::new(Exit::Failed, what).at(audit.path().display().to_string()).fix(fix));
    }
    let mut out = std::io::stdout().lock();
    if json {
        let object = json!({"whole": true, "records": checked.head.number - begin.number, "after": begin.to_string(), "head": checked.head.to_string(),
                            "torn_bytes": checked.torn, "path": audit.path().display().to_string()});
        writeln!(out, "{object}")?;
        return Ok(());
    }
    writeln!(out, "whole: {} records, head {}", checked.head.number - begin.number, checked.head)?;
    if begin.number > 0 {
        writeln!(
            out,
            "the chain begins at record {}: the files before it were taken away",
            begin.number + 1
        )?;
    }
    if checked.torn > 0 {
        eprintln!(
            "  a crash left {} bytes of a record at its end; the next record takes them away",
            checked.torn
        );
    }
    eprintln!(
        "  note the head elsewhere: `hearth audit verify --head NUMBER:HASH` shows later that nothing before it changed"
    );
    Ok(())
}

fn show(audit: &Audit, last: usize, event: Option<String>, json: bool) -> Result<(), CliError> {
    let mut entries: VecDeque<Entry> = VecDeque::new();
    let checked = read(audit, None, |entry| {
        if event.as_ref().is_none_or(|event| *event == entry.event) {
            entries.push_back(entry);
            if entries.len() > last {
                entries.pop_front();
            }
        }
    });
    let mut out = std::io::stdout().lock();
    for entry in &entries {
        match json {
            true => writeln!(out, "{}", entry.json())?,
            false => writeln!(out, "{}", line(entry))?,
        }
    }
    // What is before the damage is shown, and then said where it ends.
    checked.map(|_| ())
}

/// A record for people. Texts stay quoted, so that none can move the cursor.
fn line(entry: &Entry) -> String {
    let fields = entry.fields.iter().filter(|(_, value)| value.as_str() != Some(""));
    let fields: String = fields.map(|(name, value)| format!("  {name}={value}")).collect();
    let who: String = entry.who.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("{:>6}  {}  {:<20}  {who}{fields}", entry.number, entry.time, entry.event)
}
