//! A set of public keys (RFC 7517), as an identity provider publishes it.

use jsonwebtoken::DecodingKey;
use serde_json::Value;

/// Keys of one set at most; of more, the first are taken.
pub const MOST: usize = 32;
/// A longer `kid` is no name of a key.
pub const LONGEST_KID: usize = 128;

/// An RSA key that signs.
#[derive(Clone)]
pub struct PublicKey {
    pub kid: Option<String>,
    pub key: DecodingKey,
}

/// The keys of one provider, and whose name tokens signed with them must carry.
#[derive(Clone)]
pub struct Set {
    pub keys: Vec<PublicKey>,
    pub issuers: Vec<String>,
}

impl Set {
    /// The keys that a token with this `kid` may be signed with; every key when it names none.
    pub fn named<'a>(&'a self, kid: Option<&'a str>) -> impl Iterator<Item = &'a PublicKey> {
        self.keys.iter().filter(move |key| kid.is_none() || key.kid.as_deref() == kid)
    }

    /// Takes over the issuers of the set before.
    pub fn inherit(&mut self, before: &Set) {
        let known: Vec<_> = before.issuers.iter().filter(|issuer| !self.issued(issuer)).cloned().collect();
        self.issuers.extend(known);
    }

    /// Whether a token's issuer is this set's.
    pub fn issued(&self, issuer: &str) -> bool {
        self.issuers.iter().any(|known| same(known, issuer))
    }
}

/// A slash at the end makes no other issuer.
fn same(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}

/// The RSA signature keys in a published set; what else is in it is skipped. `None` if this is no set at all.
pub fn read(text: &[u8]) -> Option<Vec<PublicKey>> {
    let set: Value = serde_json::from_slice(text).ok()?;
    let mut keys: Vec<_> = set.get("keys")?.as_array()?.iter().filter_map(rsa).collect();
    if keys.len() > MOST {
        tracing::warn!(
            count = keys.len(),
            "a set holds more than {MOST} keys; tokens of the last ones are refused"
        );
        keys.truncate(MOST);
    }
    Some(keys)
}

fn rsa(key: &Value) -> Option<PublicKey> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let signs = text("use").is_none_or(|of| of == "sig") && text("alg").is_none_or(|alg| alg == "RS256");
    if text("kty") != Some("RSA") || !signs {
        return None;
    }
    let kid = text("kid").filter(|kid| kid.len() <= LONGEST_KID).map(str::to_owned);
    Some(PublicKey { kid, key: DecodingKey::from_rsa_components(text("n")?, text("e")?).ok()? })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::*;

    #[test]
    fn only_rsa_keys_that_sign_are_taken() {
        let rsa = json!({"kty": "RSA", "kid": "a", "use": "sig", "alg": "RS256", "n": "AQAB", "e": "AQAB"});
        let with = |name: &str, value: Value| {
            let mut key = rsa.clone();
            key[name] = value;
            key
        };
        let keys = json!({"keys": [
            rsa, with("use", json!("enc")), with("alg", json!("RS512")), with("kty", json!("oct")),
            with("n", json!("not base64!")), with("n", json!(7)), with("kid", json!("x".repeat(129))),
            {"kty": "EC", "crv": "P-256", "x": "AQAB", "y": "AQAB"}, "text", null,
        ]});
        let found = read(keys.to_string().as_bytes()).unwrap();
        let kids: Vec<_> = found.iter().map(|key| key.kid.as_deref()).collect();
        assert_eq!(kids, [Some("a"), None]);
        for odd in ["", "{}", "[]", "{\"keys\": {}}", "<html>"] {
            assert!(read(odd.as_bytes()).is_none(), "{odd}");
        }
    }

    #[test]
    fn keys_beyond_the_most_are_left_out_and_the_log_says_so() {
        let key =
            |i: usize| json!({"kty": "RSA", "kid": i.to_string(), "use": "sig", "n": "AQAB", "e": "AQAB"});
        let of = |count: usize| {
            let keys: Vec<Value> = (0..count).map(key).collect();
            let log = Arc::new(Mutex::new(Vec::new()));
            let told = log.clone();
            let subscriber = tracing_subscriber::fmt().with_writer(move || Log(told.clone())).finish();
            let text = json!({"keys": keys}).to_string();
            let read = tracing::subscriber::with_default(subscriber, || read(text.as_bytes()).unwrap().len());
            (read, String::from_utf8(log.lock().unwrap().clone()).unwrap())
        };
        assert_eq!(of(MOST), (MOST, String::new()));
        let (read, log) = of(MOST + 1);
        assert_eq!(read, MOST);
        assert!(log.contains("WARN") && log.contains("a set holds more than 32 keys"), "{log}");
        assert!(log.contains("33"), "{log}");
    }

    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
