//! `hearth keys`: API keys, and the gateway's own key for editors' tokens.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde_json::{Value, json};

use super::{CliError, Common, Exit};
use crate::access::change::{ChangeError, Wanted};
use crate::access::grant::{Record, State};
use crate::access::{Class, FIRST, Keys, used};
use crate::audit::{Audit, Event, Who};
use crate::config::{Layers, Settings, state};
use crate::duo::identity::own;

#[derive(Subcommand)]
pub enum Verb {
    /// Make an API key; it is shown once and kept by nobody
    Create(Create),
    /// List API keys: what each opens, until when, and when it was used last
    List {
        /// Also keys that have expired or were revoked
        #[arg(long)]
        all: bool,
        /// Print a JSON object per line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// End an API key at once, or all keys of a name
    Revoke {
        /// An id or a name
        #[arg(value_name = "KEY")]
        which: String,
        #[command(flatten)]
        place: Place,
    },
    /// Make a new key in the place of one: an API key, or the key that signs editors' tokens
    Rotate(Rotate),
}

#[derive(Args)]
pub struct Create {
    /// What to call it, like the program that will use it
    name: String,
    /// Who answers for it
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// A kind of routes that it opens: openai, admin or metrics; may be repeated [default: openai]
    #[arg(long = "class", value_name = "CLASS")]
    classes: Vec<Class>,
    /// A model that it opens; may be repeated [default: all]
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// An address or a network that it may be used from; may be repeated [default: anywhere]
    #[arg(long = "from", value_name = "CIDR")]
    addresses: Vec<String>,
    /// When it ends: a time from now like 90d or 12h, a date, or never
    #[arg(long, value_name = "TIME", default_value = "never")]
    expires: String,
    /// Requests a minute; 0: any number [default: limits.key_requests]
    #[arg(long, value_name = "N")]
    requests: Option<u32>,
    /// Tokens a minute, of prompts and answers; 0: any number [default: limits.key_tokens]
    #[arg(long, value_name = "N")]
    tokens: Option<u32>,
    /// Requests at the same time; 0: any number [default: limits.key_concurrent]
    #[arg(long, value_name = "N")]
    concurrent: Option<u32>,
    #[command(flatten)]
    shown: Shown,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
#[command(
    override_usage = "hearth keys rotate [OPTIONS] <KEY>\n       hearth keys rotate --signing [--revoke]"
)]
pub struct Rotate {
    /// The API key's id or name; `first` is the one that the server made at its first start
    #[arg(value_name = "KEY", required_unless_present = "signing", conflicts_with = "signing")]
    which: Option<String>,
    /// The key that signs editors' tokens; tokens signed with the one before stay good until they end
    #[arg(long)]
    signing: bool,
    /// With --signing: forget the key before at once, and with it the tokens that it signed
    #[arg(long, requires = "signing")]
    revoke: bool,
    /// How long the old API key stays good: a time like 1d or 2h, a date, or 0
    #[arg(long, value_name = "TIME", default_value = "1d", conflicts_with = "signing")]
    grace: String,
    #[command(flatten)]
    shown: Shown,
    #[command(flatten)]
    place: Place,
}

/// How a new key is shown.
#[derive(Args)]
struct Shown {
    /// Write the key to standard output also where that is no terminal
    #[arg(long)]
    print: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Place {
    /// Where the keys are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Place {
    fn settings(&self, common: &Common) -> Result<(Layers, Settings), CliError> {
        let mut layers = common.layers()?;
        if let Some(directory) = &self.state_dir {
            layers.flag("--state-dir", "server.state_dir", directory.display().to_string())?;
        }
        let settings = Settings::of(&layers)?;
        Ok((layers, settings))
    }
}

impl From<ChangeError> for CliError {
    fn from(error: ChangeError) -> Self {
        let exit = match &error {
            ChangeError::Store(error) => return error.clone().into(),
            ChangeError::Field { .. } => Exit::Usage,
            _ => Exit::Failed,
        };
        CliError::new(exit, error.to_string()).fix(error.fix())
    }
}

pub fn run(verb: Verb, common: &Common) -> Result<(), CliError> {
    match verb {
        Verb::Create(verb) => create(verb, common),
        Verb::List { all, json, place } => list(&place.settings(common)?.1, all, json),
        Verb::Revoke { which, place } => {
            let keys = Keys::at(&place.settings(common)?.1.state_dir);
            for key in keys.revoke(&Who::caller(), &which)? {
                eprintln!("{} ({}) is revoked", key.name, key.id);
            }
            eprintln!("  a running server knows it within a second");
            Ok(())
        }
        Verb::Rotate(verb) if verb.signing => signing(&verb, common),
        Verb::Rotate(verb) => rotate(&verb, common),
    }
}

fn create(verb: Create, common: &Common) -> Result<(), CliError> {
    verb.shown.possible()?;
    let (_, settings) = verb.place.settings(common)?;
    let wanted = Wanted {
        name: verb.name,
        owner: verb.owner,
        classes: verb.classes,
        models: verb.models,
        addresses: verb.addresses,
        expires: match verb.expires.as_str() {
            "never" => None,
            text => Some(moment("--expires", text)?),
        },
        requests: verb.requests,
        tokens: verb.tokens,
        concurrent: verb.concurrent,
    };
    let keys = Keys::at(&settings.state_dir);
    let (record, key) = keys.create(&Who::caller(), &wanted)?;
    verb.shown.show(&record, key.expose(), &keys)
}

fn rotate(verb: &Rotate, common: &Common) -> Result<(), CliError> {
    verb.shown.possible()?;
    let (layers, settings) = verb.place.settings(common)?;
    let keys = Keys::at(&settings.state_dir);
    let which = verb.which.as_deref().expect("bug: clap asks for it");
    if which == FIRST {
        if settings.key.is_some() {
            let what = "the first key is configured, and goes before what is in the state directory";
            return Err(CliError::new(Exit::Config, what)
                .at(layers.origin("server.key").to_string())
                .fix("change it there, and reload or restart the server"));
        }
        let key = keys.rotate_first(&Who::caller())?;
        let mut out = std::io::stdout().lock();
        match verb.shown.json {
            true => writeln!(out, "{}", json!({"id": FIRST, "key": key.expose()}))?,
            false => writeln!(out, "{}", key.expose())?,
        }
        let path = state::key_path(&settings.state_dir);
        eprintln!(
            "  the first key is a new one, kept in {}; the old one is good for nothing",
            path.display()
        );
        eprintln!("  a running server knows it within a second");
        return Ok(());
    }
    let until = match verb.grace.as_str() {
        "0" => None,
        text => Some(moment("--grace", text)?),
    };
    let (record, key) = keys.rotate(&Who::caller(), which, until)?;
    verb.shown.show(&record, key.expose(), &keys)?;
    match until {
        Some(until) => eprintln!("  the old key is good until {until:.0}, or until its own end"),
        None => eprintln!("  the old key is good for nothing"),
    }
    Ok(())
}

/// A time to come: a span from now, or a date.
fn moment(flag: &str, text: &str) -> Result<Timestamp, CliError> {
    let now = Timestamp::now();
    let after = || now.to_zoned(TimeZone::UTC).checked_add(text.parse::<Span>().ok()?).ok();
    let date = || text.parse::<jiff::civil::Date>().ok()?.to_zoned(TimeZone::UTC).ok();
    let found = text.parse::<Timestamp>().ok().or_else(|| Some(date().or_else(after)?.timestamp()));
    found.filter(|time| *time > now).ok_or_else(|| {
        CliError::new(Exit::Usage, format!("`{flag}` is {text:?}, which is no time to come"))
            .fix("write a span like 90d or 12h, a date like 2030-01-31, or a time like 2030-01-31T12:00:00Z")
    })
}

impl Shown {
    /// Before a key is made that nobody would see, or that would stay in some file.
    fn possible(&self) -> Result<(), CliError> {
        match self.print || std::io::stdout().is_terminal() {
            true => Ok(()),
            false => Err(CliError::new(
                Exit::Usage,
                "standard output is no terminal, and the key would stay wherever it goes",
            )
            .fix("run it at a terminal, or say --print where that is what is wanted")),
        }
    }

    fn show(&self, record: &Record, key: &str, keys: &Keys) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let mut object = object(record, None);
            object["key"] = json!(key);
            writeln!(out, "{object}")?;
        } else {
            writeln!(out, "{key}")?;
        }
        out.flush()?;
        eprintln!("  {} ({}): {}", record.name, record.id, record.words());
        eprintln!("  shown once; what is kept in {} cannot show it again", keys.path().display());
        eprintln!("  a running server knows it within a second");
        Ok(())
    }
}

fn object(record: &Record, used: Option<i64>) -> Value {
    let state = record.state(Timestamp::now()).to_string();
    json!({
        "id": record.id, "name": record.name, "owner": record.owner, "state": state, "classes": record.classes,
        "models": record.models, "addresses": record.addresses, "created": record.created, "expires": record.expires,
        "revoked": record.revoked, "successor": record.successor, "requests": record.requests, "tokens": record.tokens,
        "concurrent": record.concurrent, "last_used": used.map(time),
    })
}

fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map(|time| format!("{time:.0}")).unwrap_or_default()
}

fn list(settings: &Settings, all: bool, json: bool) -> Result<(), CliError> {
    let mut records = Keys::at(&settings.state_dir).list()?;
    let used = used::read(&settings.state_dir);
    let now = Timestamp::now();
    let known = records.len();
    records.retain(|record| all || record.state(now) == State::Live);
    let mut out = std::io::stdout().lock();
    if json {
        for record in &records {
            writeln!(out, "{}", object(record, used.get(&record.id).copied()))?;
        }
        return Ok(());
    }
    let quotas = settings.quotas.keys;
    let number = |own: Option<u32>, of_all: u32| match own.unwrap_or(of_all) {
        0 => "any".to_owned(),
        n => n.to_string(),
    };
    let list = |list: &[String], none: &str| if list.is_empty() { none.to_owned() } else { list.join(",") };
    let mut rows = vec![
        [
            "id", "name", "owner", "state", "opens", "models", "from", "req/min", "tok/min", "at once",
            "expires", "used",
        ]
        .map(str::to_owned),
    ];
    rows.extend(records.iter().map(|key| {
        let state = match &key.successor {
            Some(successor) if key.state(now) == State::Live => format!("replaced by {successor}"),
            _ => key.state(now).to_string(),
        };
        [
            key.id.clone(),
            key.name.clone(),
            key.owner.clone(),
            state,
            key.classes.join(","),
            list(&key.models, "all"),
            list(&key.addresses, "anywhere"),
            number(key.requests, quotas.requests),
            number(key.tokens, quotas.tokens),
            number(key.concurrent, quotas.concurrent),
            key.expires.clone().unwrap_or_else(|| "never".to_owned()),
            used.get(&key.id).map_or("never".to_owned(), |seconds| time(*seconds)),
        ]
    }));
    if rows.len() > 1 {
        write!(out, "{}", table(&rows))?;
    }
    let hidden = known - records.len();
    if hidden > 0 {
        eprintln!("{hidden} keys have expired or were revoked; --all shows them");
    }
    let path = state::key_path(&settings.state_dir);
    let first = match &settings.key {
        Some(_) => "the configured one".to_owned(),
        None if path.exists() => format!("in {}", path.display()),
        None => "none yet; the server makes it at its first start".to_owned(),
    };
    eprintln!("the first key, which opens everything: {first}");
    Ok(())
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().enumerate().map(|(i, cell)| format!("{cell:<0$}", width(i))).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// The gateway's own key for editors' tokens.
fn signing(verb: &Rotate, common: &Common) -> Result<(), CliError> {
    let (layers, settings) = verb.place.settings(common)?;
    for (key, name) in [
        (&settings.gitlab.signing_key, "gitlab.signing_key"),
        (&settings.gitlab.validation_key, "gitlab.validation_key"),
    ] {
        if key.is_some() {
            let what = format!("`{name}` is configured, and goes before what is in the state directory");
            return Err(CliError::new(Exit::Config, what).at(layers.origin(name).to_string()).fix(
                "put the new key into gitlab.signing_key and the old one into gitlab.validation_key, or remove both",
            ));
        }
    }
    let audit = Audit::of(&settings);
    let event = Event::SigningKeyRotated { revoked: verb.revoke };
    let record = || Ok(audit.record(&Who::caller(), &event).map(|_| ())?);
    let tokens = match verb.revoke {
        true => {
            own::revoke(&settings.state_dir, record)?;
            "then tokens of the key before are refused, and editors ask for new ones"
        }
        false => {
            own::rotate(&settings.state_dir, record)?;
            "restart it within the hour: for that long, tokens of the key before are still good"
        }
    };
    eprintln!("a new key for editors' tokens is in {}", settings.state_dir.display());
    eprintln!("  a running server takes it at its next start; {tokens}");
    Ok(())
}
