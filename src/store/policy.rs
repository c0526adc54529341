//! Which files of a checkpoint are taken into the store: by name, and by how they begin.
//!
//! A model directory is data. What a decoder needs is taken, by a list of names; what could run code when somebody
//! reads it (pickles, scripts, libraries) is refused; everything else is left behind and named.

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Take(Kind),
    /// Sums that come with the files: checked, not kept.
    Sums,
    /// Not needed: named, and not taken.
    Leave,
    /// Why nothing is taken from a place that holds it.
    Refuse(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Weights,
    /// And the largest there may be.
    Json(u64),
    Text(u64),
}

const MIB: u64 = 1 << 20;

/// JSON that says what a checkpoint is and how it reads and writes.
const JSON: &[(&str, u64)] = &[
    ("config.json", 4 * MIB),
    ("generation_config.json", 4 * MIB),
    ("model.safetensors.index.json", 16 * MIB),
    ("tokenizer.json", 128 * MIB),
    ("tokenizer_config.json", 16 * MIB),
    ("special_tokens_map.json", MIB),
    ("added_tokens.json", MIB),
];
const TEXT: &[(&str, u64)] = &[("chat_template.jinja", MIB), ("README.md", 4 * MIB)];
/// How the names of licences begin.
const LICENCES: &[&str] =
    &["license", "licence", "copying", "notice", "use_policy", "acceptable_use", "usage_policy"];

const PICKLES: &[&str] =
    &["bin", "pt", "pth", "ckpt", "pkl", "pickle", "joblib", "npy", "npz", "dill", "mar", "nemo"];
const CODE: &[&str] = &[
    "py", "pyc", "pyd", "ipynb", "so", "dll", "dylib", "exe", "com", "sh", "bash", "zsh", "fish", "bat",
    "cmd", "ps1", "js", "mjs", "wasm", "jar", "class", "rb", "pl", "lua", "php", "whl", "egg", "deb", "rpm",
    "desktop", "service",
];
const PICKLE: &str = "is a pickle, which can run code when it is read";
const PROGRAM: &str = "is code; a model directory is data";

/// Whether a name is one file in a directory and shows as what it is.
pub fn flat(name: &str) -> bool {
    let plain =
        |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|');
    (1..=200).contains(&name.len()) && !name.starts_with(['.', '-']) && name.chars().all(plain)
}

/// The verdict by name alone.
pub fn by_name(name: &str) -> Verdict {
    let lower = name.to_ascii_lowercase();
    let extension = lower.rsplit_once('.').map_or("", |(_, extension)| extension);
    if PICKLES.contains(&extension) {
        return Verdict::Refuse(PICKLE);
    }
    if CODE.contains(&extension) {
        return Verdict::Refuse(PROGRAM);
    }
    if !flat(name) {
        return Verdict::Leave;
    }
    if let Some((_, limit)) = JSON.iter().find(|(known, _)| *known == name) {
        return Verdict::Take(Kind::Json(*limit));
    }
    if let Some((_, limit)) = TEXT.iter().find(|(known, _)| *known == name) {
        return Verdict::Take(Kind::Text(*limit));
    }
    if matches!(name, super::manifest::SUMS | "SHA256SUMS") {
        return Verdict::Sums;
    }
    if is_licence(name) {
        return Verdict::Take(Kind::Text(4 * MIB));
    }
    match name.strip_suffix(".safetensors") {
        // Mistral's own layout of the same weights, and weights that belong onto others: not read by the decoder.
        Some(stem) if !stem.starts_with("consolidated") && !stem.starts_with("adapter") => {
            Verdict::Take(Kind::Weights)
        }
        _ => Verdict::Leave,
    }
}

/// Whether a checkpoint's file of that name would be taken.
pub fn is_wanted(name: &str) -> bool {
    matches!(by_name(name), Verdict::Take(_))
}

/// Whether it is the text of a licence.
pub fn is_licence(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let extension = lower.rsplit_once('.').map_or("", |(_, extension)| extension);
    flat(name)
        && LICENCES.iter().any(|begin| lower.starts_with(begin))
        && matches!(extension, "" | "txt" | "md")
}

/// How many bytes [`by_start`] wants to see.
pub const START: usize = 512;

/// Beginnings of what is no checkpoint, whatever it is called.
const STARTS: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", "begins like a zip archive, as PyTorch's pickles do"),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (b"\x7fELF", PROGRAM),
    (b"#!", PROGRAM),
    (b"MZ", PROGRAM),
    (b"\xca\xfe\xba\xbe", PROGRAM),
    (b"\xcf\xfa\xed\xfe", PROGRAM),
    (b"GGUF", "is GGUF; only safetensors files are read"),
    (b"\x1f\x8b", "is gzip"),
    (b"\x28\xb5\x2f\xfd", "is zstd"),
    (b"\x93NUMPY", PICKLE),
    (b"\x89HDF", "is HDF5; only safetensors files are read"),
];

/// Whether a file is what its name says, by its first bytes (at most [`START`] of them).
pub fn by_start(kind: Kind, start: &[u8], bytes: u64) -> Result<(), String> {
    // A safetensors header may have any length, also one whose bytes look like another format's.
    let header = start.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    if kind == Kind::Weights
        && let Some(length) = header
        && length <= hearth_models::checkpoint::HEADER_LIMIT as u64
        && length < bytes
        && start.get(8) == Some(&b'{')
    {
        return Ok(());
    }
    if let Some((_, reason)) = STARTS.iter().find(|(begin, _)| start.starts_with(begin)) {
        return Err((*reason).to_owned());
    }
    match kind {
        Kind::Weights => Err("is not a safetensors file".to_owned()),
        Kind::Json(limit) | Kind::Text(limit) if bytes > limit => {
            Err(format!("has {bytes} bytes; the limit for such a file is {limit}"))
        }
        Kind::Json(_) => match start.iter().find(|b| !b.is_ascii_whitespace()) {
            Some(b'{' | b'[') => Ok(()),
            _ => Err("is not JSON".to_owned()),
        },
        Kind::Text(_) if start.contains(&0) => Err("is not text".to_owned()),
        Kind::Text(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_decoder_needs_is_taken_and_what_runs_is_refused() {
        for name in
            ["config.json", "model-00001-of-00009.safetensors", "LICENSE", "Licence.txt", "USE_POLICY.md"]
        {
            assert!(matches!(by_name(name), Verdict::Take(_)), "{name}");
        }
        for name in ["pytorch_model.bin", "x.PT", "consolidated.00.pth", "modeling_x.py", "lib.so", "Run.SH"]
        {
            assert!(matches!(by_name(name), Verdict::Refuse(_)), "{name}");
        }
        for name in
            ["consolidated.safetensors", "model.gguf", "tokenizer.model", ".gitattributes", "config.json "]
        {
            assert_eq!(by_name(name), Verdict::Leave, "{name}");
        }
        assert!(!flat("../x") && !flat("a\\b") && !flat("a\nb") && !flat("-rf") && !flat("naïve"));
    }

    #[test]
    fn a_file_must_begin_as_its_name_says() {
        let mut weights = 8u64.to_le_bytes().to_vec();
        weights.extend(b"{\"a\":1} ");
        assert_eq!(by_start(Kind::Weights, &weights, 100), Ok(()));
        assert!(by_start(Kind::Weights, &weights, 8).is_err(), "a header longer than the file");
        assert!(by_start(Kind::Weights, b"PK\x03\x04 and more of it", 100).unwrap_err().contains("zip"));
        assert!(by_start(Kind::Json(10), b"\x80\x04\x95", 3).unwrap_err().contains("pickle"));
        assert!(by_start(Kind::Json(10), b"  {}", 4).is_ok());
        assert!(by_start(Kind::Json(10), b"  {}", 11).unwrap_err().contains("the limit"));
        assert!(by_start(Kind::Json(10), b"hello", 5).is_err());
        assert!(by_start(Kind::Text(10), b"#!/bin/sh", 9).unwrap_err().contains("code"));
        assert!(by_start(Kind::Text(10), b"a\0b", 3).is_err());
        // A header of 19280 bytes begins with `PK`: it is still a safetensors file.
        let mut odd = 19_280u64.to_le_bytes().to_vec();
        odd.push(b'{');
        assert_eq!(by_start(Kind::Weights, &odd, 1 << 20), Ok(()));
    }
}
