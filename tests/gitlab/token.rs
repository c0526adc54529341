//! Tokens as Rails signs them, and as somebody would who is not Rails.

use std::sync::{Arc, LazyLock, Mutex};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::KeyPair as _;
use hearth::duo::identity::own::OwnKey;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Map, Value, json};

use super::{INSTANCE, thumbprint};

/// Every scope that GitLab gives out for its self-hosted features.
pub const SCOPES: [&str; 51] = [
    "complete_code",
    "generate_code",
    "duo_chat",
    "duo_classic_chat",
    "documentation_search",
    "explain_code",
    "write_tests",
    "refactor_code",
    "fix_code",
    "explain_vulnerability",
    "troubleshoot_job",
    "summarize_comments",
    "ask_issue",
    "ask_epic",
    "ask_merge_request",
    "ask_commit",
    "ask_build",
    "ask_work_item",
    "include_file_context",
    "include_snippet_context",
    "include_merge_request_context",
    "include_issue_context",
    "include_dependency_context",
    "include_local_git_context",
    "include_terminal_context",
    "include_repository_context",
    "include_directory_context",
    "include_user_rule_context",
    "include_agent_user_environment_context",
    "generate_commit_message",
    "summarize_new_merge_request",
    "summarize_review",
    "resolve_vulnerability",
    "review_merge_request",
    "glab_ask_git_command",
    "generate_issue_description",
    "measure_comment_temperature",
    "duo_agent_platform",
    "duo_workflow_execute_workflow",
    "duo_workflow_generate_token",
    "self_hosted_models",
    "ai_gateway_model_provider_proxy",
    "generate_embeddings_codebase",
    "categorize_question",
    "analyze_ci_job_failure",
    "semantic_search_issue",
    "summarize_issue_discussions",
    "description_composer",
    "security_scans",
    "chat_terminal_context",
    "amazon_q_integration",
];

/// Keys of the test, made once a process.
struct Key {
    pem: String,
    signing: EncodingKey,
}

fn key(index: usize) -> Arc<Key> {
    static KEYS: LazyLock<Mutex<Vec<Option<Arc<Key>>>>> = LazyLock::new(|| Mutex::new(vec![None; 16]));
    let mut keys = KEYS.lock().unwrap();
    keys[index]
        .get_or_insert_with(|| {
            let pem = OwnKey::generate();
            let signing = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
            Arc::new(Key { pem, signing })
        })
        .clone()
}

/// One of the test's private keys.
pub fn pem(index: usize) -> String {
    key(index).pem.clone()
}

/// The public half as GitLab publishes it.
pub fn public(index: usize) -> Value {
    let (jwk, kid) = thumbprint(&key(index).signing);
    let mut public = serde_json::to_value(jwk).unwrap();
    for (name, value) in [("kid", kid.as_str()), ("use", "sig"), ("alg", "RS256")] {
        public[name] = json!(value);
    }
    public
}

/// The public half as a file, with which a confused verifier would check HS256.
fn public_pem(index: usize) -> String {
    let der = pem::parse(pem(index)).unwrap();
    let pair = KeyPair::from_pkcs8(der.contents()).unwrap();
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    pem::encode(&pem::Pem::new("PUBLIC KEY", der.as_ref().to_vec()))
}

/// A token before it is signed.
#[derive(Clone)]
pub struct Token {
    key: usize,
    pub header: Map<String, Value>,
    pub claims: Map<String, Value>,
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { panic!("no object") };
    map
}

impl Token {
    /// What Rails would sign now.
    pub fn new(index: usize, issuer: &str, now: f64) -> Self {
        let now = now.floor() as u64;
        let (_, kid) = thumbprint(&key(index).signing);
        Self {
            key: index,
            header: object(json!({"alg": "RS256", "typ": "JWT", "kid": kid})),
            claims: object(json!({
                "iss": issuer, "sub": INSTANCE, "aud": ["gitlab-ai-gateway", "gitlab-duo-workflow-service"],
                "exp": now + 3600, "nbf": now - 5, "iat": now, "jti": "0d8c2f1b-7a10-4d5b-9f5e-5f2a7c1e8a55",
                "gitlab_realm": "self-managed", "scopes": SCOPES.as_slice(), "skip_usage_cutoff": false,
            })),
        }
    }

    pub fn scopes(self, scopes: &[&str]) -> Self {
        self.claim("scopes", json!(scopes))
    }

    pub fn claim(mut self, name: &str, value: Value) -> Self {
        self.claims.insert(name.to_owned(), value);
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.claims.remove(name).expect("no such claim to leave out");
        self
    }

    pub fn header(mut self, name: &str, value: Value) -> Self {
        match value {
            Value::Null => drop(self.header.remove(name)),
            value => drop(self.header.insert(name.to_owned(), value)),
        }
        self
    }

    /// Moves its times.
    pub fn shifted(mut self, seconds: i64) -> Self {
        for name in ["exp", "nbf", "iat"] {
            self.claims[name] = json!(self.claims[name].as_i64().unwrap() + seconds);
        }
        self
    }

    fn message(&self) -> String {
        let part = |map: &Map<String, Value>| base64url(Value::Object(map.clone()).to_string().as_bytes());
        format!("{}.{}", part(&self.header), part(&self.claims))
    }

    /// Signed with GitLab's key.
    pub fn sign(&self) -> String {
        self.sign_with(self.key)
    }

    /// Signed with another of the test's keys.
    pub fn sign_with(&self, index: usize) -> String {
        self.signed(&key(index).signing, Algorithm::RS256)
    }

    /// Signed with GitLab's key, by an algorithm that GitLab does not use.
    pub fn sign_by(&self, name: &str, algorithm: Algorithm) -> String {
        self.clone().header("alg", json!(name)).signed(&key(self.key).signing, algorithm)
    }

    /// By the algorithm that asks for no signature.
    pub fn unsigned(&self, name: &str) -> String {
        format!("{}.", self.clone().header("alg", json!(name)).message())
    }

    /// With the public key as the secret of an HMAC.
    pub fn confused(&self) -> String {
        let secret = EncodingKey::from_secret(public_pem(self.key).as_bytes());
        self.clone().header("alg", json!("HS256")).signed(&secret, Algorithm::HS256)
    }

    fn signed(&self, key: &EncodingKey, algorithm: Algorithm) -> String {
        let message = self.message();
        let signature = crypto::sign(message.as_bytes(), key, algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

/// Base64 for URLs, without padding (RFC 4648).
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let value = chunk.iter().fold(0u32, |sum, b| sum << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            text.push(char::from(DIGITS[(value >> (18 - 6 * i) & 63) as usize]));
        }
    }
    text
}
