//! The gateway's own keys: it signs tokens for editors, which then call it without GitLab in between.
//!
//! The signing key is a configured one, or one made at first start and kept in the state directory. The previous key
//! stays good for checking tokens, so that a rotation does not throw editors out.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use pem::{EncodeConfig, LineEnding, Pem};
use serde_json::{Value, json};

use super::claims::Claims;
use crate::config::state::{self, Kept};
use crate::config::{ConfigError, Origin};

const SIGNING: Kept = Kept {
    name: "jwt_signing.pem",
    what: "the key that signs editors' tokens",
    instead: "gitlab.signing_key",
};
const VALIDATION: Kept = Kept {
    name: "jwt_validation.pem",
    what: "the previous key of editors' tokens",
    instead: "gitlab.validation_key",
};

/// An editor's token is good for an hour; the language server asks for the next one 40 seconds before.
pub const LIFE: u64 = 3600;

/// Why a text is no private key; reads after "it must be".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("an RSA private key in PEM form, with line breaks or with \\n in their place")]
    Pem,
    #[error("an RSA private key, but this is {0}")]
    Other(&'static str),
    #[error("an RSA private key of at least 2048 bits that is whole")]
    Rejected,
    #[error("an RSA private key of 2048 to 8192 bits")]
    Size,
}

/// An RSA private key.
#[derive(Clone)]
pub struct OwnKey {
    signing: EncodingKey,
    public: DecodingKey,
}

/// A secret: `Debug` does not show it.
impl std::fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl OwnKey {
    /// A key in PEM form, PKCS#1 or PKCS#8. Environment files often hold it on one line, with `\n` for line breaks
    /// and quotes around it.
    pub fn read(text: &str) -> Result<Self, KeyError> {
        let text = text.trim().trim_matches(['"', '\'']).replace("\\n", "\n");
        let found = pem::parse(&text).map_err(|_| KeyError::Pem)?;
        let pair = match found.tag() {
            "RSA PRIVATE KEY" => KeyPair::from_der(found.contents()),
            "PRIVATE KEY" => KeyPair::from_pkcs8(found.contents()),
            "PUBLIC KEY" | "RSA PUBLIC KEY" => return Err(KeyError::Other("a public key")),
            "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Other("an encrypted key")),
            "CERTIFICATE" => return Err(KeyError::Other("a certificate")),
            _ => return Err(KeyError::Pem),
        };
        let pair = pair.map_err(|_| KeyError::Rejected)?;
        if !(256..=1024).contains(&pair.public_modulus_len()) {
            return Err(KeyError::Size);
        }
        let signing = EncodingKey::from_rsa_pem(text.as_bytes()).map_err(|_| KeyError::Rejected)?;
        Ok(Self { signing, public: DecodingKey::from_rsa_der(pair.public_key().as_ref()) })
    }

    /// A new key of 2048 bits, in PEM form.
    pub fn generate() -> String {
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("bug: the system makes no key");
        let der = pair.as_der().expect("bug: a new key has no form");
        pem::encode_config(
            &Pem::new("PRIVATE KEY", der.as_ref().to_vec()),
            EncodeConfig::new().set_line_ending(LineEnding::LF),
        )
    }
}

/// A token for an editor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minted {
    pub token: String,
    /// Seconds since 1970.
    pub expires_at: u64,
}

/// The keys in use.
#[derive(Clone, Debug)]
pub struct OwnKeys {
    signing: OwnKey,
    previous: Option<OwnKey>,
    /// When the last token of the previous key has ended, since 1970. `None`: a configured one, which stays for as long
    /// as it is configured.
    until: Option<Duration>,
}

impl OwnKeys {
    pub fn new(signing: OwnKey, previous: Option<OwnKey>) -> Self {
        Self { signing, previous, until: None }
    }

    /// The configured keys; where there is none, the state directory's, made on the first call.
    pub fn open(
        directory: &Path,
        signing: Option<OwnKey>,
        previous: Option<OwnKey>,
    ) -> Result<Self, ConfigError> {
        let signing = match signing {
            Some(key) => key,
            None => {
                let (text, made) = SIGNING.get_or_make(directory, OwnKey::generate)?;
                if made {
                    let file = SIGNING.path(directory);
                    tracing::info!(file = %file.display(), "a key for editors' tokens was made");
                }
                of_file(directory, SIGNING, &text)?
            }
        };
        if previous.is_some() {
            return Ok(Self::new(signing, previous));
        }
        let Some(text) = VALIDATION.get(directory)? else { return Ok(Self::new(signing, None)) };
        let previous = Some(of_file(directory, VALIDATION, &text)?);
        // A rotation sets the file's time.
        let rotated = fs::metadata(VALIDATION.path(directory)).and_then(|file| file.modified());
        let rotated = rotated.map_err(|e| VALIDATION.failed(directory, &e))?;
        let until = rotated.duration_since(UNIX_EPOCH).unwrap_or_default() + Duration::from_secs(LIFE);
        Ok(Self { signing, previous, until: Some(until) })
    }

    /// The keys that a token of this gateway's own may be signed with. Both: after a rotation, tokens that name the
    /// signing key are signed with the previous one. That one ends with the last token that it can have signed.
    pub fn public(&self, now: Duration, leeway: Duration) -> impl Iterator<Item = &DecodingKey> {
        let previous = self.previous.as_ref().filter(|_| self.until.is_none_or(|until| now < until + leeway));
        [Some(&self.signing), previous].into_iter().flatten().map(|key| &key.public)
    }

    /// A token for an editor: it opens completion and nothing else.
    pub fn mint(&self, service: &str, user: &str, scopes: &[&str], of: &Claims, now: u64) -> Option<Minted> {
        let expires_at = now + LIFE;
        let mut claims = of.repeated.clone();
        let own = json!({
            "iss": service, "aud": service, "sub": user, "exp": expires_at, "nbf": now, "iat": now, "jti": uuid(),
            "gitlab_realm": of.realm, "gitlab_instance_id": of.instance, "scopes": scopes,
        });
        let Value::Object(own) = own else { unreachable!("bug: an object is an object") };
        claims.extend(own);
        let header = Header { kid: Some(signing_kid(service)), ..Header::new(Algorithm::RS256) };
        let token = jsonwebtoken::encode(&header, &claims, &self.signing.signing);
        token
            .inspect_err(|error| tracing::error!(%error, "no token was made"))
            .ok()
            .map(|token| Minted { token, expires_at })
    }
}

pub fn signing_kid(service: &str) -> String {
    format!("{service}_signing_key")
}

pub fn validation_kid(service: &str) -> String {
    format!("{service}_validation_key")
}

fn of_file(directory: &Path, file: Kept, text: &str) -> Result<OwnKey, ConfigError> {
    OwnKey::read(text).map_err(|expected| {
        let fix = format!("it must be {expected}; without the file a new key is made");
        ConfigError::new(&Origin::File(file.path(directory)), "it holds no key for editors' tokens", fix)
    })
}

/// Makes a new signing key in the state directory; the one there becomes the previous one. A crash in the middle
/// leaves no signing key, and the next start makes one. `record` is asked when nothing is in the way any more, and can
/// still refuse.
pub fn rotate(directory: &Path, record: impl FnOnce() -> Result<(), ConfigError>) -> Result<(), ConfigError> {
    replace(directory, false, record)
}

/// Makes a new signing key in the state directory and forgets those before: for a key that others may have seen.
pub fn revoke(directory: &Path, record: impl FnOnce() -> Result<(), ConfigError>) -> Result<(), ConfigError> {
    replace(directory, true, record)
}

fn replace(
    directory: &Path,
    forget: bool,
    record: impl FnOnce() -> Result<(), ConfigError>,
) -> Result<(), ConfigError> {
    let owner = owner(directory)?;
    // A first key, so that there is one to keep and a directory to keep it in.
    let (old, _) = SIGNING.get_or_make(directory, OwnKey::generate)?;
    if !forget {
        of_file(directory, SIGNING, &old)?;
    }
    record()?;
    let (signing, validation) = (SIGNING.path(directory), VALIDATION.path(directory));
    // Its end is counted from now on, not from when it was made.
    let dated =
        File::options().write(true).open(&signing).and_then(|file| file.set_modified(SystemTime::now()));
    let moved = dated.and_then(|()| fs::rename(&signing, &validation));
    moved.map_err(|e| SIGNING.failed(directory, &e))?;
    if forget {
        fs::remove_file(&validation).map_err(|e| VALIDATION.failed(directory, &e))?;
    }
    SIGNING.get_or_make(directory, OwnKey::generate)?;
    let Some(owner) = owner else { return Ok(()) };
    for path in [&signing, &validation].into_iter().filter(|path| path.exists()) {
        chown(path, Some(owner), None).map_err(|e| SIGNING.failed(directory, &e))?;
    }
    Ok(())
}

/// Whose the keys must be in the end, if that is not this user: root makes them for the user that the server runs as.
/// Another user would leave keys that the server cannot read, and is refused.
fn owner(directory: &Path) -> Result<Option<u32>, ConfigError> {
    let key = SIGNING.path(directory);
    let known = [&*key, directory].into_iter().find_map(|path| Some((path, fs::metadata(path).ok()?.uid())));
    match (known, state::user()) {
        (Some((_, owner)), Some(user)) if owner == user => Ok(None),
        (Some((_, owner)), Some(0)) => Ok(Some(owner)),
        (Some((path, owner)), Some(user)) if path == key => {
            let what = format!("{} belongs to user {owner}, and this is user {user}", SIGNING.what);
            let fix =
                format!("run it as that user: sudo -u '#{owner}' hearth keys rotate --signing, or as root");
            Err(ConfigError::new(&Origin::File(path.to_owned()), what, fix))
        }
        // Of a directory that several users may write to, nobody's keys are there yet.
        _ => Ok(None),
    }
}

/// A random name (RFC 9562, version 4).
fn uuid() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("bug: the system gives no random numbers");
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
