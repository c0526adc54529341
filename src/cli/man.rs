//! `hearth man`: the manual, for packages and for who reads it here.
//!
//! Pages are made from the same tables that parse the command line and the settings, so they cannot say anything else.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::{Cli, CliError, Exit};
use crate::config::keys::{KEYS, Key, Kind, MODEL_KEYS, UPSTREAM_KEYS, of_size};
use crate::config::layers::FILE;

const VERSION: &str = concat!("hearth ", env!("CARGO_PKG_VERSION"));

#[derive(Args)]
pub struct Manual {
    /// Write all pages into this directory instead of the first to standard output
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

pub fn run(verb: Manual) -> Result<(), CliError> {
    let mut root = Cli::command();
    root.build();
    let Some(directory) = verb.to else {
        return Ok(page(root).render(&mut std::io::stdout().lock())?);
    };
    let failed = |path: &Path, e: std::io::Error| {
        CliError::new(Exit::Failed, format!("the manual cannot be written: {e}"))
            .at(path.display().to_string())
            .fix("choose a directory that this user may write: --to")
    };
    fs::create_dir_all(&directory).map_err(|e| failed(&directory, e))?;
    let write = |name: String, text: &dyn Fn(&mut Vec<u8>) -> std::io::Result<()>| {
        let path = directory.join(name);
        let mut page = Vec::new();
        text(&mut page).and_then(|()| fs::write(&path, page)).map_err(|e| failed(&path, e))
    };
    for command in visible(root) {
        let page = page(command);
        write(page.get_filename(), &|to| page.render(to))?;
    }
    write("hearth.toml.5".to_owned(), &settings)
}

fn page(command: Command) -> Man {
    // A name with blanks in it would be several names to an index of manuals.
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).replace(' ', "-");
    // A blank date: an empty one is left out by the writer, and readers take the next word for it.
    Man::new(command.display_name(name)).date(" ").source(VERSION).manual("Hearth")
}

/// A command and all below it that are not hidden.
fn visible(command: Command) -> Vec<Command> {
    let below = command.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned();
    let below: Vec<Command> = below.flat_map(visible).collect();
    [vec![command], below].concat()
}

/// hearth.toml(5): every setting, from the table that checks them.
fn settings(to: &mut Vec<u8>) -> std::io::Result<()> {
    let mut page = Roff::new();
    page.control("TH", ["hearth.toml", "5", " ", VERSION, "Hearth"]);
    page.control("SH", ["NAME"]);
    page.text([roman("hearth.toml - the settings of hearth")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([
        roman("Settings are read from the defaults below, then from "),
        bold(FILE),
        roman(" (or the file that "),
        bold("--config"),
        roman(" names), then from the files "),
        bold("conf.d/*.toml"),
        roman(" beside it in the order of their names, then from the environment, where "),
        bold("server.listen"),
        roman(" is "),
        bold("HEARTH__SERVER__LISTEN"),
        roman(", and then from flags; what comes later wins. A name that is not listed here is an error."),
    ]);
    page.control("PP", []);
    page.text([
        bold("hearth config check"),
        roman(" reads all of it and says what is wrong, "),
        bold("hearth config show --origin"),
        roman(" says what is in force and from where, and "),
        bold("systemctl reload hearth"),
        roman(" puts changes in force that need no restart. A file with an error changes nothing."),
    ]);
    let mut section = "";
    for key in KEYS {
        let (of, name) = key.name.split_once('.').expect("bug: a setting without a section");
        if of != section {
            page.control("SH", [format!("[{of}]").as_str()]);
            section = of;
        }
        setting(&mut page, name, key);
    }
    for (title, about, keys) in [
        (
            "[[model]]",
            "One table for each model that is computed here; none: the model built in.",
            MODEL_KEYS,
        ),
        ("[[upstream]]", "One table for each server that answers for models of its own.", UPSTREAM_KEYS),
    ] {
        page.control("SH", [title]);
        page.text([roman(about)]);
        for key in keys {
            setting(&mut page, key.name, key);
        }
    }
    page.control("SH", ["FILES"]);
    for (path, about) in [
        (FILE, "the settings"),
        ("/etc/hearth/conf.d/*.toml", "more of them, each file over the ones before"),
        ("/etc/hearth/tls/", "a place for certificates and their keys, which only the service may read"),
        ("/var/lib/hearth/", "keys, the audit log and imported models"),
    ] {
        page.control("TP", []);
        page.text([bold(path)]);
        page.text([roman(about)]);
    }
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("hearth"), roman("(1), "), bold("hearth-config"), roman("(1)")]);
    page.to_writer(to)?;
    to.flush()
}

fn setting(page: &mut Roff, name: &str, key: &Key) {
    let default = match (key.kind, key.default) {
        (_, "") => String::new(),
        (Kind::Number(..) | Kind::Switch, value) => format!("; default {value}"),
        (_, value) => format!("; default \"{value}\""),
    };
    page.control("TP", []);
    page.text([bold(name), roman(" "), italic(form(key.kind)), roman(default)]);
    page.text([roman(key.about)]);
}

/// What a value looks like in the file.
fn form(kind: Kind) -> String {
    match kind {
        Kind::Number(low, high) => format!("number from {low} to {high}"),
        Kind::Choice(words) => {
            let words: Vec<String> =
                words.iter().filter(|word| !word.is_empty()).map(|word| format!("\"{word}\"")).collect();
            words.join(" | ")
        }
        Kind::Switch => "true | false".to_owned(),
        Kind::Size => "size, like \"8GiB\"".to_owned(),
        Kind::SizeWithin(low, high) => format!("size from {} to {}", of_size(low), of_size(high)),
        Kind::List => "list of texts".to_owned(),
        Kind::Url => "URL".to_owned(),
        Kind::Path => "path".to_owned(),
        Kind::Secret => "secret".to_owned(),
        Kind::Addresses => "\"address:port\", or a list of them".to_owned(),
        Kind::OptionalAddress => "\"address:port\"".to_owned(),
        Kind::Networks => "list of networks, like \"10.0.0.0/8\"".to_owned(),
        Kind::Text => "text".to_owned(),
    }
}
