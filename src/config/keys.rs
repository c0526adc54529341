//! The table of settings.

use std::net::SocketAddr;

use crate::duo::identity::Bypass;
use crate::outbound::Base;
use crate::server::addresses::Networks;
use crate::store::How;

/// What a setting's value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One `address:port` or several: a list, or one text with commas.
    Addresses,
    /// `address:port`, or nothing.
    OptionalAddress,
    /// Networks and single addresses, like `10.0.0.0/8`: a list, or one text with commas.
    Networks,
    /// A whole number within a range.
    Number(u64, u64),
    Choice(&'static [&'static str]),
    Switch,
    Path,
    /// Never shown.
    Secret,
    /// Bytes: `512MiB`, `8GiB`, or a plain number.
    Size,
    /// The same within a range.
    SizeWithin(u64, u64),
    Text,
    /// Several texts: a list, or one text with commas.
    List,
    /// `http` or `https`, a host, perhaps a port and a path.
    Url,
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `section.key`; the environment has it as `HEARTH__SECTION__KEY`.
    pub name: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub about: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { name, kind, default, about }
}

/// A day: no time limit is longer.
const DAY: u64 = 86_400;
const MILLION: u64 = 1_000_000;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

pub const KEYS: &[Key] = &[
    key(
        "server.listen",
        Kind::Addresses,
        "127.0.0.1:5052",
        "address of the API, or several; not used where systemd passes sockets",
    ),
    key("server.metrics", Kind::OptionalAddress, "127.0.0.1:8082", "address of the metrics; empty: none"),
    key(
        "server.metrics_key",
        Kind::Choice(&["auto", "on", "off"]),
        "auto",
        "whether the metrics ask for a key of class metrics; auto: unless they listen on loopback",
    ),
    key(
        "server.tls_cert",
        Kind::Path,
        "",
        "certificate in PEM form, those between it and its authority after it; empty: no TLS",
    ),
    key("server.tls_key", Kind::Path, "", "the certificate's private key in PEM form"),
    key(
        "server.client_ca",
        Kind::Path,
        "",
        "certificates in PEM form: who calls must have one that they signed; empty: needs none",
    ),
    key("server.allow", Kind::Networks, "", "who may call, like 10.0.0.0/8; empty: everybody"),
    key("server.deny", Kind::Networks, "", "who may not, also where `allow` would let them in"),
    key("server.metrics_allow", Kind::Networks, "", "who may read the metrics; empty: everybody"),
    key("server.metrics_deny", Kind::Networks, "", "who may not read the metrics"),
    key(
        "server.trusted_proxies",
        Kind::Networks,
        "",
        "proxies before this server: only what they say in X-Forwarded-For counts",
    ),
    key("server.connections", Kind::Number(1, MILLION), "4096", "connections at the same time"),
    key(
        "server.connections_per_address",
        Kind::Number(1, MILLION),
        "1024",
        "connections of one address (IPv6: of one /64) at the same time; trusted proxies have no such limit",
    ),
    key(
        "server.first_byte_timeout",
        Kind::Number(1, DAY),
        "5",
        "seconds until a new connection says anything",
    ),
    key("server.header_timeout", Kind::Number(1, DAY), "10", "seconds until a request's headers are there"),
    key("server.body_timeout", Kind::Number(1, DAY), "30", "seconds between two pieces of a request's body"),
    key(
        "server.idle_timeout",
        Kind::Number(1, DAY),
        "120",
        "seconds that a connection is kept between requests; callers like GitLab keep theirs 90",
    ),
    key(
        "server.unread_timeout",
        Kind::Number(1, DAY),
        "60",
        "seconds until a caller takes more of its answer; a slow line has as much longer as it needs",
    ),
    key("server.max_headers", Kind::Number(16, 1024), "128", "headers of a request at most"),
    key(
        "server.max_header_bytes",
        Kind::SizeWithin(8 * KIB, MIB),
        "64KiB",
        "bytes of a request's headers at most",
    ),
    key(
        "server.max_body",
        Kind::SizeWithin(64 * KIB, 256 * MIB),
        "8MiB",
        "bytes of a request's body at most; as JSON in memory it takes several times as many",
    ),
    key(
        "server.max_bodies",
        Kind::SizeWithin(MIB, 64 << 30),
        "64MiB",
        "bytes of all requests' bodies that are read and worked on at the same time",
    ),
    key(
        "server.drain_delay",
        Kind::Number(0, DAY),
        "0",
        "seconds at shutdown from being no longer ready to taking no more connections; behind a load balancer: as long \
         as it takes to notice, like 10",
    ),
    key("server.drain", Kind::Number(0, DAY), "30", "seconds that requests in flight have at shutdown"),
    key(
        "server.step_timeout",
        Kind::Number(1, DAY),
        "120",
        "seconds after which a step that does not end counts as hung: not live, and the watchdog is not fed",
    ),
    key(
        "server.state_dir",
        Kind::Path,
        "",
        "where the key is kept; empty: /var/lib/hearth for root, else ~/.local/state/hearth",
    ),
    key(
        "server.key",
        Kind::Secret,
        "",
        "the API key; empty: made at first start and kept in the state directory",
    ),
    key(
        "engine.device",
        Kind::Choice(&["auto", "cpu", "cuda"]),
        "auto",
        "what computes; auto: the NVIDIA GPU where this host has one and this build serves it, else the CPU",
    ),
    key("engine.threads", Kind::Number(0, 1024), "0", "threads that compute; 0: one for each core"),
    key(
        "engine.step_tokens",
        Kind::Number(0, 4096),
        "0",
        "tokens computed in a step at most; 0: 256 on the CPU, 2048 on a GPU",
    ),
    key(
        "engine.strict",
        Kind::Switch,
        "false",
        "on a GPU: a request gets the same bytes whatever else runs, at some speed; on the CPU it always does",
    ),
    key("engine.sequences", Kind::Number(1, 65_536), "64", "answers in the making at the same time"),
    key("engine.queue_requests", Kind::Number(1, MILLION), "256", "requests that may wait"),
    key("engine.queue_tokens", Kind::Number(1, 1 << 40), "262144", "prompt tokens that may wait"),
    key("engine.prefix_cache", Kind::Switch, "true", "whether equal beginnings of prompts are computed once"),
    key(
        "limits.key_requests",
        Kind::Number(0, MILLION),
        "600",
        "requests a minute of an API key that has no limit of its own; 0: any number",
    ),
    key(
        "limits.key_tokens",
        Kind::Number(0, 1_000_000_000),
        "400000",
        "tokens a minute of an API key that has no limit of its own; 0: any number",
    ),
    key(
        "limits.key_concurrent",
        Kind::Number(0, 65_536),
        "32",
        "requests at the same time of an API key that has no limit of its own; 0: any number",
    ),
    key(
        "limits.user_requests",
        Kind::Number(0, MILLION),
        "600",
        "requests a minute of a GitLab user; 0: any number",
    ),
    key(
        "limits.user_concurrent",
        Kind::Number(0, 65_536),
        "16",
        "requests at the same time of a GitLab user; 0: any number",
    ),
    key(
        "limits.failures",
        Kind::Number(0, MILLION),
        "20",
        "wrong API keys a minute from an address, which then waits; 0: any number",
    ),
    key("gitlab.url", Kind::Url, "", "GitLab's URL, also with a relative root; empty: no Duo"),
    key("gitlab.portal_url", Kind::Url, "", "the customers portal, whose tokens are good too; empty: none"),
    key(
        "gitlab.instance_id",
        Kind::Text,
        "",
        "the instance whose tokens of the customers portal are good; empty: the one that GitLab's own tokens name",
    ),
    key("gitlab.ca_file", Kind::Path, "", "certificates in PEM form, trusted beside the system's"),
    key("gitlab.audience", Kind::Text, "gitlab-ai-gateway", "the audience that tokens must name"),
    key("gitlab.leeway", Kind::Number(0, 600), "60", "seconds by which GitLab's clock may differ"),
    key("gitlab.refresh", Kind::Number(60, DAY), "3600", "seconds between two fetches of GitLab's keys"),
    key(
        "gitlab.scopes",
        Kind::Choice(&["enforce", "trust"]),
        "enforce",
        "whether a token opens only what its scopes name, or everything",
    ),
    key(
        "gitlab.bypass",
        Kind::Choice(Bypass::WORDS),
        "off",
        "for trying things out, on loopback only: who comes in without a good token",
    ),
    key(
        "gitlab.signing_key",
        Kind::Secret,
        "",
        "RSA key in PEM form for editors' tokens; empty: made at first start and kept in the state directory",
    ),
    key("gitlab.validation_key", Kind::Secret, "", "the signing key before; its tokens are still good"),
    key(
        "duo.completion_model",
        Kind::Text,
        "",
        "answers completions for which GitLab names no model; empty: the first that fills gaps",
    ),
    key(
        "duo.generation_model",
        Kind::Text,
        "",
        "answers generations for which GitLab names no model; empty: the first for conversations",
    ),
    key(
        "duo.chat_model",
        Kind::Text,
        "",
        "answers chat for which GitLab names no model; empty: the first for conversations",
    ),
    key(
        "duo.patience",
        Kind::Number(1, 600),
        "60",
        "seconds that GitLab waits for chat; its own setting says",
    ),
    key("duo.docs", Kind::Path, "", "a directory of Markdown files for documentation search; empty: none"),
    key("duo.streaming", Kind::Switch, "true", "whether answers go to GitLab as they are made"),
    key("models.dir", Kind::Path, "", "where imported models are; empty: models in the state directory"),
    key(
        "models.verify",
        Kind::Choice(How::WORDS),
        "sample",
        "how much of an imported model is compared with its sums when it is loaded",
    ),
    key(
        "admin.socket",
        Kind::Path,
        "",
        "socket of `hearth status`, `reload` and their like; empty: admin.sock in the runtime or state directory",
    ),
    key(
        "audit.max_size",
        Kind::Size,
        "64MiB",
        "size at which a file of the audit log is closed and the next one begun; 0: never",
    ),
    key(
        "audit.keep",
        Kind::Number(0, 100_000),
        "0",
        "closed files of the audit log that are kept, the oldest go first; 0: all of them",
    ),
    key(
        "console.listen",
        Kind::OptionalAddress,
        "127.0.0.1:5053",
        "address of the console, on loopback; empty: none",
    ),
    key(
        "console.hosts",
        Kind::List,
        "",
        "names under which browsers reach the console, beside this host's own",
    ),
    key(
        "metrics.compat",
        Kind::Choice(&["none", "vllm"]),
        "none",
        "other names under which figures are told too; vllm: those that inference gateways of Kubernetes read",
    ),
    key("log.level", Kind::Choice(&["error", "warn", "info", "debug", "trace"]), "info", "what is logged"),
    key("log.format", Kind::Choice(&["text", "json"]), "text", "how it is logged"),
];

/// The settings of one `[[model]]`.
pub const MODEL_KEYS: &[Key] = &[
    key("name", Kind::Text, "", "the name in requests; empty: the directory's"),
    key(
        "path",
        Kind::Path,
        "",
        "the checkpoint's directory, or an imported model; empty: what is imported or built in under that name",
    ),
    key(
        "quantize",
        Kind::Choice(&["none", "q8_0", "q6_k", "q4_k", "int8", "fp8", "int4"]),
        "none",
        "how weights are packed at load; int8, fp8 and int4 on a GPU alone",
    ),
    key("aliases", Kind::List, "", "other names in requests"),
    key(
        "family",
        Kind::Choice(FAMILIES),
        "",
        "whose prompts it takes, as GitLab names it; empty: by its checkpoint",
    ),
    key("context", Kind::Number(0, 1 << 24), "0", "tokens of prompt and answer; 0: the checkpoint's own"),
    key("kv", Kind::Size, "0", "memory for keys and values of a replica; 0: room for a few whole contexts"),
    key(
        "kv_type",
        Kind::Choice(&["auto", "fp8"]),
        "auto",
        "how keys and values are stored; fp8, on a GPU: half the memory, room for twice the tokens, less exact",
    ),
    key("replicas", Kind::Number(0, 64), "0", "copies of it, each on a GPU of its own; 0: one on every GPU"),
];

/// GitLab's names of model families, and none.
const FAMILIES: &[&str] = &[
    "",
    "mistral",
    "mixtral",
    "codestral",
    "codegemma",
    "codellama",
    "deepseekcoder",
    "llama3",
    "qwen",
    "gpt",
    "claude_3",
    "gemini",
    "general",
];

/// The settings of one `[[upstream]]`.
pub const UPSTREAM_KEYS: &[Key] = &[
    key("name", Kind::Text, "", "its name in messages, figures and lists of models"),
    key("url", Kind::Url, "", "where its OpenAI-compatible API begins, like https://vllm.example.com/v1"),
    key("models", Kind::List, "", "models to serve from there: NAME, or NAME=ITS-NAME-THERE"),
    key("aliases", Kind::List, "", "other names of its first model in requests"),
    key("key", Kind::Secret, "", "its API key"),
    key("key_file", Kind::Path, "", "a file with its API key"),
    key(
        "family",
        Kind::Choice(FAMILIES),
        "",
        "whose prompts its models take, as GitLab names it; empty: general",
    ),
    key(
        "fill",
        Kind::Choice(&["", "suffix", "codestral", "codegemma", "codellama", "deepseek", "starcoder", "chat"]),
        "",
        "how gaps are asked: the field `suffix`, markers of a family in a plain prompt, or a chat; empty: by family",
    ),
    key("context", Kind::Number(1, 1 << 24), "32768", "tokens of prompt and answer that its models hold"),
    key("concurrent", Kind::Number(1, 65_536), "64", "requests to it at the same time"),
    key("connect_timeout", Kind::Number(1, 600), "5", "seconds until a connection stands"),
    key(
        "idle_timeout",
        Kind::Number(1, DAY),
        "60",
        "seconds until the first and between two pieces of an answer",
    ),
    key("timeout", Kind::Number(1, DAY), "600", "seconds for a whole answer"),
    key("ca_file", Kind::Path, "", "certificates in PEM form that are trusted for it beside the system's"),
    key("plain", Kind::Switch, "false", "whether http is allowed to a host that is not this one"),
];

impl Key {
    /// A value of the wrong form as a message may show it: it may still hold a secret.
    pub fn shown(&self, value: &str) -> String {
        match (self.kind, value.rsplit_once('@')) {
            (Kind::Secret, _) => "***".to_owned(),
            (Kind::Url, Some((before, after))) => {
                let scheme = before.find("://").map_or("", |end| &before[..end + 3]);
                format!("{scheme}***@{after}")
            }
            _ => value.to_owned(),
        }
    }

    /// Whether a value fits; the error says what would.
    pub fn check(&self, value: &str) -> Result<(), String> {
        match self.kind {
            Kind::OptionalAddress if value.is_empty() => Ok(()),
            Kind::OptionalAddress if value.parse::<SocketAddr>().is_err() => {
                Err("an address with a port, like 127.0.0.1:5052".to_owned())
            }
            Kind::Addresses if list(value).next().is_none() => {
                Err("an address with a port, like 127.0.0.1:5052, or several".to_owned())
            }
            Kind::Addresses => match list(value).find(|item| item.parse::<SocketAddr>().is_err()) {
                Some(_) => Err("an address with a port, like 127.0.0.1:5052, or several".to_owned()),
                None => Ok(()),
            },
            Kind::Networks => value.parse::<Networks>().map(|_| ()).map_err(|e| e.to_string()),
            Kind::Number(low, high) if !value.parse::<u64>().is_ok_and(|n| (low..=high).contains(&n)) => {
                Err(format!("a whole number from {low} to {high}"))
            }
            Kind::Choice(words) if !words.contains(&value) => {
                let words: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
                Err(format!("one of {}", words.join(", ")))
            }
            Kind::Url if !value.is_empty() => value.parse::<Base>().map(|_| ()).map_err(|e| e.to_string()),
            Kind::Switch if !matches!(value, "true" | "false") => Err("true or false".to_owned()),
            Kind::SizeWithin(low, high) if !size(value).is_some_and(|n| (low..=high).contains(&n)) => {
                Err(format!("a size from {} to {}", of_size(low), of_size(high)))
            }
            Kind::Size if size(value).is_none() => Err("a size, like 512MiB or 8GiB".to_owned()),
            _ => Ok(()),
        }
    }
}

/// The items of a list that was written with commas.
pub fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// `8GiB` and its like, for a number of bytes.
pub fn of_size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit))
}

/// Bytes in `8GiB` and its like.
pub fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1u64 << 40,
        _ => return None,
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(unit)
}
