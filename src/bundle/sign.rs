//! Signatures of bundles: minisign's, so that its tool checks them too.

use std::fs::{self, OpenOptions};
use std::io::{Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use minisign::{KeyPair, SecretKey, SecretKeyBox};
use minisign_verify::{PublicKey, Signature};

use super::BundleError;
use crate::store::StoreError;

/// Where the public key is looked for when none is named: a site's own, then the package's.
pub const PLACES: [&str; 2] = ["/etc/hearth/bundle.pub", "/usr/share/hearth/bundle.pub"];
/// Opens a secret key that has a password.
pub const PASSWORD: &str = "HEARTH_SIGNING_PASSWORD";

/// Whose bundles are believed.
pub enum Trust {
    Key {
        key: Box<PublicKey>,
        place: PathBuf,
    },
    /// Nobody's in particular: asked for by name.
    Anybody,
}

impl Trust {
    /// The key that was named, or the one that is installed.
    pub fn of(named: Option<&Path>) -> Result<Self, BundleError> {
        let installed = || PLACES.iter().map(PathBuf::from).find(|path| path.exists());
        let Some(place) = named.map(Path::to_owned).or_else(installed) else {
            let reason =
                format!("there is none to check its signature with, neither {} nor {}", PLACES[0], PLACES[1]);
            return Err(BundleError::Signature { place: "the public key".to_owned(), reason });
        };
        let wrong = |reason: String| BundleError::Key { place: place.display().to_string(), reason };
        let key = PublicKey::from_file(&place)
            .map_err(|e| wrong(format!("it is no public key of minisign: {e}")))?;
        Ok(Self::Key { key: Box::new(key), place })
    }

    /// Who signed it, if the signature is good.
    pub fn check(&self, place: &str, sums: &[u8], signature: Option<&str>) -> Result<String, BundleError> {
        let Self::Key { key, place: of } = self else {
            return Ok("nobody: the signature was not checked".to_owned());
        };
        let wrong = |reason: String| BundleError::Signature { place: place.to_owned(), reason };
        let text = signature.ok_or_else(|| wrong("it is not signed".to_owned()))?;
        let signature =
            Signature::decode(text).map_err(|e| wrong(format!("its signature cannot be read: {e}")))?;
        key.verify(sums, &signature, false).map_err(|e| match e {
            minisign_verify::Error::UnexpectedKeyId => {
                wrong(format!("it is signed with another key than {}", of.display()))
            }
            e => wrong(format!("its signature is not good: {e}")),
        })?;
        Ok(format!("{} ({})", of.display(), signature.trusted_comment()))
    }
}

/// Signs the sums.
pub fn sign(key: &Path, sums: &[u8], comment: &str) -> Result<String, BundleError> {
    let signed = minisign::sign(None, &secret(key)?, Cursor::new(sums), Some(comment), None);
    let signed =
        signed.map_err(|e| BundleError::Key { place: key.display().to_string(), reason: e.to_string() })?;
    Ok(signed.into_string())
}

fn secret(path: &Path) -> Result<SecretKey, BundleError> {
    let wrong = |reason: String| BundleError::Key { place: path.display().to_string(), reason };
    let text = fs::read_to_string(path).map_err(|e| wrong(format!("it cannot be read: {e}")))?;
    let boxed = SecretKeyBox::from_string(&text)
        .map_err(|e| wrong(format!("it is no secret key of minisign: {e}")))?;
    // Which of the two it is, the text does not tell.
    let plain =
        SecretKeyBox::from_string(&text).ok().and_then(|boxed| boxed.into_unencrypted_secret_key().ok());
    if let Some(key) = plain {
        return Ok(key);
    }
    let password =
        std::env::var(PASSWORD).map_err(|_| wrong(format!("it has a password: set {PASSWORD}")))?;
    boxed
        .into_secret_key(Some(password))
        .map_err(|e| wrong(format!("it cannot be opened with {PASSWORD}: {e}")))
}

/// Makes a pair: `STEM.key`, for its owner alone, and `STEM.pub`. Neither may be there before.
pub fn generate(stem: &Path) -> Result<(PathBuf, PathBuf), BundleError> {
    let at = |extension: &str| PathBuf::from(format!("{}.{extension}", stem.display()));
    let (secret, public) = (at("key"), at("pub"));
    let wrong = |reason: String| BundleError::Key { place: secret.display().to_string(), reason };
    let failed = |e: minisign::PError| wrong(e.to_string());
    let password = std::env::var(PASSWORD).ok().filter(|password| !password.is_empty());
    let pair = match password {
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
        None => KeyPair::generate_unencrypted_keypair(),
    };
    let pair = pair.map_err(failed)?;
    let texts = [
        (&secret, 0o600, pair.sk.to_box(None).map_err(failed)?.into_string()),
        (&public, 0o644, pair.pk.to_box().map_err(failed)?.into_string()),
    ];
    for (path, mode, text) in texts {
        let written =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            });
        written.map_err(StoreError::io(path, "it cannot be written"))?;
    }
    Ok((secret, public))
}
