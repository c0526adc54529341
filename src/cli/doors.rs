//! The doors that `hearth serve` opens for those who watch it: the admin socket and the console.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use super::{CliError, Exit};
use crate::admin::routes::{Door, router};
use crate::admin::{Addresses, Admin, socket};
use crate::audit::Who;
use crate::config::{Layers, Origin, Settings};
use crate::console;
use crate::reload::Reload;
use crate::server::Shared;

/// Opens both. What was asked for must open; a default that cannot is told and left out: serving goes before watching.
pub async fn open(
    shared: Shared,
    settings: &Settings,
    layers: &Layers,
    reload: Reload,
    mut addresses: Addresses,
) -> Result<Arc<Admin>, CliError> {
    let listener = match settings.console {
        None => None,
        Some(address) => match console::bind(address).await {
            Ok((listener, bound)) => {
                addresses.console = Some(bound.to_string());
                Some(listener)
            }
            Err(e) => {
                missing(layers, "console.listen", format!("no console: cannot listen on {address}: {e}"))?;
                None
            }
        },
    };
    let admin = Admin::new(shared, settings.clone(), reload, addresses);
    let path = socket::places(settings).into_iter().next().expect("bug: there is always a first place");
    match socket::bind(&path).await {
        Ok(bound) => drop(tokio::spawn(socket::serve(bound, router(&admin, Door::Socket)))),
        Err(e) => {
            let what = format!("no admin socket at {}: {}", path.display(), reason(&e));
            missing(layers, "admin.socket", what)?;
        }
    }
    if let Some(listener) = listener {
        tokio::spawn(console::serve(listener, router(&admin, Door::Console)));
        if let Some(address) = &admin.addresses.console {
            // The link lets in whoever has it, so it goes to a person and never into a journal.
            match io::stderr().is_terminal() {
                true => {
                    let link = admin.sessions.link(Who::caller(), admin.shared.access.first());
                    eprintln!(
                        "console: http://{address}/login?t={link}  (works once; another: hearth console)"
                    );
                }
                false => eprintln!("console: http://{address}  (`hearth console` gives a link)"),
            }
        }
    }
    Ok(admin)
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        // The kernel's word for a path of more than 107 bytes.
        io::ErrorKind::InvalidInput => format!("{error}; a shorter path is needed (107 bytes)"),
        _ => error.to_string(),
    }
}

fn missing(layers: &Layers, setting: &str, what: String) -> Result<(), CliError> {
    let origin = layers.origin(setting);
    let fix = format!("correct `{setting}`, or stop what is in the way");
    if *origin == Origin::Default {
        tracing::warn!("{what}; {fix}");
        return Ok(());
    }
    Err(CliError::new(Exit::Port, what).at(origin.to_string()).fix(fix))
}
