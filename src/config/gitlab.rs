//! The settings of `[gitlab]`: whose tokens are good, and the gateway's own keys.

use std::path::PathBuf;

use super::{ConfigError, Layers, front};
use crate::duo::identity::claims::is_instance;
use crate::duo::identity::own::OwnKey;
use crate::duo::identity::{Bypass, Rules};
use crate::outbound::Base;

/// Checked.
#[derive(Clone)]
pub struct GitLab {
    pub rules: Rules,
    /// `None`: the one in the state directory.
    pub signing_key: Option<OwnKey>,
    pub validation_key: Option<OwnKey>,
}

/// Without the keys.
impl std::fmt::Debug for GitLab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GitLab").field("url", &self.rules.gitlab).finish_non_exhaustive()
    }
}

impl GitLab {
    pub fn of(layers: &Layers) -> Result<Self, ConfigError> {
        let audience = layers.text("gitlab.audience");
        if audience.is_empty() {
            let fix = "leave it out, or set what GitLab puts into its tokens: gitlab-ai-gateway";
            return Err(ConfigError::new(
                layers.origin("gitlab.audience"),
                "`gitlab.audience` is empty",
                fix,
            ));
        }
        let rules = Rules {
            gitlab: url(layers, "gitlab.url")?,
            portal: url(layers, "gitlab.portal_url")?,
            authorities: Some(layers.text("gitlab.ca_file")).filter(|p| !p.is_empty()).map(PathBuf::from),
            audience: audience.to_owned(),
            leeway: std::time::Duration::from_secs(layers.number("gitlab.leeway")?),
            refresh: std::time::Duration::from_secs(layers.number("gitlab.refresh")?),
            instance: instance(layers)?,
            enforced: layers.text("gitlab.scopes") == "enforce",
            bypass: bypass(layers)?,
            ..Rules::default()
        };
        if let Some(portal) = rules.portal.as_ref().filter(|portal| !portal.guarded()) {
            let fix = "use https: whoever can answer that address can make tokens that are good here";
            let what = format!("`gitlab.portal_url` is {portal}, without TLS");
            return Err(ConfigError::new(layers.origin("gitlab.portal_url"), what, fix));
        }
        Ok(Self {
            rules,
            signing_key: private_key(layers, "gitlab.signing_key")?,
            validation_key: private_key(layers, "gitlab.validation_key")?,
        })
    }
}

impl GitLab {
    /// What is dangerous about these settings though they work, and what to do.
    pub fn warning(&self) -> Option<(String, &'static str)> {
        let url = self.rules.gitlab.as_ref().filter(|url| !url.guarded())?;
        let what = format!(
            "gitlab.url is {url}, without TLS: whoever can answer that address on the way can let themselves in, with keys \
             of their own"
        );
        Some((what, "use https, with gitlab.ca_file if the certificate is the site's own"))
    }
}

fn url(layers: &Layers, name: &str) -> Result<Option<Base>, ConfigError> {
    match layers.text(name) {
        "" => Ok(None),
        _ => layers.parse(name).map(Some),
    }
}

fn instance(layers: &Layers) -> Result<Option<String>, ConfigError> {
    let name = "gitlab.instance_id";
    match layers.text(name) {
        "" => Ok(None),
        text if is_instance(text) => Ok(Some(text.to_owned())),
        text => {
            let fix = "it must be the instance's UUID, like 5f2a7c1e-8a55-4d5b-9f5e-0d8c2f1b7a10: GitLab sends it as \
                       X-Gitlab-Instance-Id";
            Err(ConfigError::new(layers.origin(name), format!("`{name}` is {text:?}"), fix))
        }
    }
}

/// The way past the check of tokens, which only this machine itself may be offered.
fn bypass(layers: &Layers) -> Result<Bypass, ConfigError> {
    let (word, origin) = (layers.text("gitlab.bypass"), layers.origin("gitlab.bypass"));
    let bypass = Bypass::parse(word).expect("bug: checked by its row");
    let open = front::listen(layers).into_iter().find(|listen| !listen.ip().is_loopback());
    if let Some(listen) = open.filter(|_| bypass != Bypass::Off) {
        let what = format!("`gitlab.bypass` is {word:?} while `server.listen` is {listen}");
        let fix = "whoever reaches that address would be let in: listen on 127.0.0.1:5052, or set gitlab.bypass to \
                   \"off\"";
        return Err(ConfigError::new(origin, what, fix));
    }
    Ok(bypass)
}

fn private_key(layers: &Layers, name: &str) -> Result<Option<OwnKey>, ConfigError> {
    match layers.text(name) {
        "" => Ok(None),
        text => OwnKey::read(text).map(Some).map_err(|expected| {
            let fix =
                format!("it must be {expected}; without it a key is made and kept in the state directory");
            ConfigError::new(layers.origin(name), format!("`{name}` holds no usable key"), fix)
        }),
    }
}
