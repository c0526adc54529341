//! Whose request it is (step 2 in the life of a request): a token that GitLab signed, or one that this gateway signed
//! for an editor.
//!
//! The texts of refusals are the contract's and say little; the log says the reason, never the token. [`keyring`] has
//! the public keys, [`claims`] reads what a token says, [`own`] are the gateway's keys.

mod caller;
pub mod claims;
mod keyring;
pub mod own;
mod set;
pub mod source;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, header};
use jsonwebtoken::dangerous::insecure_decode;
use jsonwebtoken::{Algorithm, Validation};
use serde_json::{Map, Value};

pub use caller::{Caller, Issuer};

use super::client;
use super::error::DuoError;
use crate::engine::clock::Clock;
use crate::outbound::{Base, OutboundError};
use claims::{Claims, Expected, Reason, brief};
use keyring::Keyring;
use own::{Minted, OwnKeys};
use set::{LONGEST_KID, PublicKey};
use source::{Provider, Source};

/// Who may come in without a token. Only loopback listeners may have anything but [`Bypass::Off`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bypass {
    #[default]
    Off,
    /// Everybody.
    All,
    /// Whoever sends `Bypass-Auth: true`.
    Header,
    /// Nobody, but who signed a token does not matter.
    Signature,
}

impl Bypass {
    /// The words of the setting.
    pub const WORDS: &[&str] = &["off", "all", "header", "signature"];

    pub fn parse(word: &str) -> Option<Self> {
        let at = Self::WORDS.iter().position(|known| *known == word)?;
        Some([Self::Off, Self::All, Self::Header, Self::Signature][at])
    }
}

/// How tokens are checked.
#[derive(Clone)]
pub struct Rules {
    /// Without it no token of GitLab's is good.
    pub gitlab: Option<Base>,
    pub portal: Option<Base>,
    /// Certificates in PEM form, trusted beside the system's.
    pub authorities: Option<PathBuf>,
    /// Which audience a token must name; the issuer of this gateway's own tokens.
    pub audience: String,
    /// By how much clocks may differ.
    pub leeway: Duration,
    /// Between two fetches of the keys.
    pub refresh: Duration,
    /// The instance whose tokens of the customers portal are good; `None`: the one that GitLab's own tokens name.
    pub instance: Option<String>,
    /// Whether scopes decide.
    pub enforced: bool,
    pub bypass: Bypass,
    /// Time since 1970.
    pub clock: Arc<dyn Clock>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            gitlab: None,
            portal: None,
            authorities: None,
            audience: "gitlab-ai-gateway".to_owned(),
            leeway: Duration::from_secs(60),
            refresh: Duration::from_secs(3600),
            instance: None,
            enforced: true,
            bypass: Bypass::Off,
            clock: Arc::new(Wall),
        }
    }
}

/// The time that tokens are written in.
pub struct Wall;

impl Clock for Wall {
    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// Checks tokens.
pub struct Identity {
    rules: Rules,
    keyring: Arc<Keyring>,
    /// Without them there are no tokens for editors.
    own: Option<OwnKeys>,
    /// The instance of GitLab's last good token.
    instance: Mutex<Option<String>>,
    told: Told,
}

/// Why a provider's token is not good.
enum Refusal {
    /// Its key is known, the issuer that it names is not.
    Issuer(Reason),
    Other(Reason),
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self::Other(reason)
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        let (Refusal::Issuer(reason) | Refusal::Other(reason)) = refusal;
        reason
    }
}

/// When the log was told last what it should not be told with every request.
#[derive(Default)]
struct Told {
    bypass: Mutex<Option<Duration>>,
    missing: Mutex<Option<Duration>>,
}

const MINUTE: Duration = Duration::from_secs(60);

/// The header with the user as GitLab counts users everywhere, hashed.
const USER: &str = "X-Gitlab-Global-User-Id";
const FORBIDDEN: &str = "Forbidden by auth provider";
const BYPASS: &str =
    "the check of tokens is switched off (gitlab.bypass): whoever reaches this port is let in";

impl Identity {
    pub fn new(rules: Rules, own: Option<OwnKeys>) -> Result<Self, OutboundError> {
        let source = |provider, base: &Option<Base>| {
            base.clone().map(|base| Source::new(provider, base, rules.authorities.as_deref())).transpose()
        };
        let sources = [source(Provider::GitLab, &rules.gitlab)?, source(Provider::Portal, &rules.portal)?];
        let sources = sources.into_iter().flatten().collect();
        let keyring = Arc::new(Keyring::new(sources, rules.refresh, rules.clock.clone()));
        if rules.bypass != Bypass::Off {
            tracing::warn!("{BYPASS}");
        }
        Ok(Self { rules, keyring, own, instance: Mutex::default(), told: Told::default() })
    }

    /// Keeps GitLab's keys fresh; for a task of its own. Nothing fetches them otherwise.
    pub fn keep(&self) -> impl Future<Output = ()> + Send + use<> {
        self.keyring.clone().keep()
    }

    /// Whether GitLab's tokens can be checked, if there is a GitLab.
    pub fn ready(&self) -> bool {
        self.rules.gitlab.is_none() || self.rules.bypass == Bypass::All || self.keyring.missing().is_none()
    }

    /// Whether requests may come in unproven.
    pub fn bypassed(&self) -> bool {
        self.rules.bypass != Bypass::Off
    }

    /// How old GitLab's keys are, if there are any.
    pub fn keys_age(&self) -> Option<Duration> {
        self.keyring.age()
    }

    /// Whose request this is, or the refusal in the contract's words.
    pub async fn check(&self, headers: &HeaderMap) -> Result<Caller, DuoError> {
        let bypassed = match self.rules.bypass {
            Bypass::All => true,
            Bypass::Header => client::text(headers, "bypass-auth") == Some("true"),
            Bypass::Off | Bypass::Signature => false,
        };
        if bypassed {
            self.seldom(&self.told.bypass, || tracing::warn!("{BYPASS}"));
            return Ok(Caller::debug(client::text(headers, USER).unwrap_or_default()));
        }
        let unauthorized = |text: &'static str, reason: &str| DuoError::unauthorized(text, reason);
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Err(unauthorized("No authorization header presented", "no token"));
        };
        let value = value.to_str().unwrap_or_default();
        let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(unauthorized("Invalid authorization header", "the scheme is not Bearer"));
        }
        if client::text(headers, "x-gitlab-authentication-type") != Some("oidc") {
            let text = "Invalid authentication token type - only OIDC is supported";
            return Err(unauthorized(text, "X-Gitlab-Authentication-Type is not \"oidc\""));
        }
        let (issuer, claims) =
            self.read(token.trim()).await.map_err(|reason| unauthorized(FORBIDDEN, &reason))?;
        agree(issuer, &claims, headers)?;
        let user = client::text(headers, USER).unwrap_or_default();
        Ok(Caller::new(issuer, claims, self.rules.enforced, user))
    }

    /// A token for an editor, made from what GitLab's own token says. `None` without a key, or when signing fails; the
    /// log has the reason. None is made for callers that proved nothing: it would outlive the bypass by an hour.
    pub fn mint(&self, user: &str, scopes: &[&str], of: &Claims) -> Option<Minted> {
        if self.bypassed() {
            tracing::error!(
                "no token for an editor was made: the check of tokens is switched off (gitlab.bypass)"
            );
            return None;
        }
        self.own.as_ref()?.mint(&self.rules.audience, user, scopes, of, self.rules.clock.now().as_secs())
    }

    /// What a token says, if its signature, its times, its audience and its issuer are good.
    async fn read(&self, token: &str) -> Result<(Issuer, Claims), Reason> {
        if self.rules.bypass == Bypass::Signature {
            self.seldom(&self.told.bypass, || tracing::warn!("{BYPASS}"));
            let token =
                insecure_decode::<Map<String, Value>>(token).map_err(|_| "the token cannot be read")?;
            let claims = self.claims(&token.claims)?;
            let issuer = self.issuer(&claims);
            if issuer == Issuer::GitLab {
                claims.of_instance()?;
            }
            return Ok((issuer, claims));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| "the token's header cannot be read")?;
        if header.alg != Algorithm::RS256 {
            return Err(format!("the token is signed with {:?}; RS256 is what GitLab uses", header.alg));
        }
        if header.crit.is_some() {
            return Err("the token's header asks for extensions (`crit`) that are not known".to_owned());
        }
        let kid = header.kid.as_deref();
        if kid.is_some_and(|kid| kid.len() > LONGEST_KID) {
            return Err(format!("the token's `kid` is longer than {LONGEST_KID} bytes"));
        }
        let service = &self.rules.audience;
        let ours = [own::signing_kid(service), own::validation_kid(service)];
        if kid.is_none_or(|kid| ours.iter().any(|own| own == kid)) {
            let (now, leeway) = (self.rules.clock.now(), self.rules.leeway);
            let mut own = self.own.iter().flat_map(|own| own.public(now, leeway));
            if let Some(token) = own.find_map(|key| signed(token, key)) {
                let claims = self.claims(&token)?;
                return match self.issuer(&claims) {
                    Issuer::Gateway => Ok((Issuer::Gateway, claims)),
                    _ => Err(format!("a token of the gateway's own names issuer {:?}", claims.issuer)),
                };
            }
            if kid.is_some() {
                return Err(
                    "the token is not signed with this gateway's keys, which its `kid` names".to_owned()
                );
            }
        }
        if !self.known(kid) {
            self.keyring.again(|| self.known(kid)).await;
        }
        let (provider, claims) = match self.of_provider(token, kid) {
            Err(Refusal::Issuer(_)) => {
                // The instance may have got another name.
                self.keyring.again(|| self.of_provider(token, kid).is_ok()).await;
                self.of_provider(token, kid)
            }
            other => other,
        }?;
        claims.of_instance()?;
        self.of_this_instance(provider, &claims)?;
        Ok((Issuer::GitLab, claims))
    }

    /// The customers portal signs for every instance there is, so that its tokens must be for this one: the one that is
    /// configured, or whose own tokens came here.
    fn of_this_instance(&self, provider: Provider, claims: &Claims) -> Result<(), Reason> {
        let mut seen = self.instance.lock().unwrap_or_else(PoisonError::into_inner);
        if provider == Provider::GitLab {
            if seen.as_ref() != Some(&claims.subject) {
                *seen = Some(claims.subject.clone());
            }
            return Ok(());
        }
        match self.rules.instance.as_ref().or(seen.as_ref()) {
            Some(instance) if instance.eq_ignore_ascii_case(&claims.subject) => Ok(()),
            Some(instance) => Err(format!(
                "the customers portal made the token for instance {}; this gateway's GitLab is {instance} \
                 (gitlab.instance_id, else what GitLab's own tokens say)",
                claims.subject
            )),
            None => Err(format!(
                "the customers portal made the token for instance {}, and which one this gateway's GitLab is, is not \
                 known before a token that it signed itself came: set gitlab.instance_id",
                claims.subject
            )),
        }
    }

    /// Whether a provider has a key of this name.
    fn known(&self, kid: Option<&str>) -> bool {
        self.keyring.sets().iter().any(|(_, set)| set.named(kid).next().is_some())
    }

    /// What a token says that a provider signed.
    fn of_provider(&self, token: &str, kid: Option<&str>) -> Result<(Provider, Claims), Refusal> {
        let sets = self.keyring.sets();
        let claimed = || match insecure_decode::<Map<String, Value>>(token) {
            Ok(token) => brief(token.claims.get("iss").unwrap_or(&Value::Null)),
            Err(_) => "nobody".to_owned(),
        };
        for (provider, set) in &sets {
            let Some(found) = set.named(kid).find_map(|PublicKey { key, .. }| signed(token, key)) else {
                continue;
            };
            let claims = self.claims(&found)?;
            if !set.issued(&claims.issuer) {
                return Err(Refusal::Issuer(format!(
                    "the key is {}'s, but the token names issuer {:?}; it must be one of {:?}: compare gitlab.url with \
                     the instance's external URL",
                    provider.name(),
                    claims.issuer,
                    set.issuers
                )));
            }
            return Ok((*provider, claims));
        }
        if let Some(problem) = self.keyring.missing() {
            let url = self.rules.gitlab.as_ref().map(Base::to_string).unwrap_or_default();
            self.seldom(&self.told.missing, || {
                tracing::warn!(
                    url,
                    problem,
                    "tokens are refused because GitLab's keys are not known: check gitlab.url (AIGW_GITLAB_URL), whether \
                     this host reaches it, and gitlab.ca_file if its certificate is the site's own"
                );
            });
            return Err(format!("GitLab's keys are not known: {problem}").into());
        }
        let count: usize = sets.iter().map(|(_, set)| set.keys.len()).sum();
        let why = match kid {
            None => {
                format!(
                    "the token names no key, and its signature is that of none of the {count} that are known"
                )
            }
            Some(_) if self.known(kid) => {
                "the signature is not that of the key which the token names".to_owned()
            }
            Some(kid) => format!("its key {kid:?} is none of the {count} that are known"),
        };
        Err(format!(
            "{why}; the token says that it comes from {} (a token of the customers portal needs gitlab.portal_url, one of \
             another instance is refused)",
            claimed()
        )
        .into())
    }

    fn claims(&self, token: &Map<String, Value>) -> Result<Claims, Reason> {
        let Rules { audience, leeway, clock, .. } = &self.rules;
        let expected = Expected { audience, now: clock.now().as_secs_f64(), leeway: leeway.as_secs_f64() };
        Claims::read(token, &expected)
    }

    fn issuer(&self, claims: &Claims) -> Issuer {
        match claims.issuer == self.rules.audience {
            true => Issuer::Gateway,
            false => Issuer::GitLab,
        }
    }

    /// Does something at most once a minute.
    fn seldom(&self, last: &Mutex<Option<Duration>>, act: impl FnOnce()) {
        let now = self.rules.clock.now();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| now.abs_diff(last) >= MINUTE) {
            *last = Some(now);
            act();
        }
    }
}

/// The claims of a token, if it is signed with this key. What they say is for [`Claims::read`] to judge.
fn signed(token: &str, key: &jsonwebtoken::DecodingKey) -> Option<Map<String, Value>> {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    jsonwebtoken::decode(token, key, &validation).ok().map(|token| token.claims)
}

/// Headers must not say something else than the token.
fn agree(issuer: Issuer, claims: &Claims, headers: &HeaderMap) -> Result<(), DuoError> {
    let subject = match issuer {
        Issuer::Gateway => USER,
        _ => "X-Gitlab-Instance-Id",
    };
    for (name, claim, value) in [
        ("X-Gitlab-Realm", "gitlab_realm", &claims.realm),
        ("X-Gitlab-Instance-Id", "gitlab_instance_id", &claims.instance),
        (subject, "sub", &claims.subject),
    ] {
        let given = client::text(headers, name);
        if !value.is_empty() && given != Some(value.as_str()) {
            let given = given.map_or("is missing".to_owned(), |given| format!("is {}", brief(&given.into())));
            let reason = format!(
                "the header {given}, the claim `{claim}` is {}: a restored or cloned GitLab must be activated again, and a \
                 proxy must not drop headers",
                brief(&Value::from(value.as_str()))
            );
            return Err(DuoError::unauthorized(format!("Header mismatch '{name}'"), reason));
        }
    }
    Ok(())
}
