//! The small model inside the binary: ember, trained from scratch for this repository (models/ember/CARD.md).
//!
//! It takes the same way as any checkpoint from a directory, so that a first request needs no download and every test
//! of the whole runs on real weights. Its name says that it is no production model.

use crate::checkpoint::{Checkpoint, CheckpointError};

pub const NAME: &str = "ember-demo";
pub const CONFIG: &[u8] = include_bytes!("../ember/config.json");
pub const GENERATION_CONFIG: &[u8] = include_bytes!("../ember/generation_config.json");
pub const TOKENIZER: &[u8] = include_bytes!("../ember/tokenizer.json");
pub const TOKENIZER_CONFIG: &[u8] = include_bytes!("../ember/tokenizer_config.json");
static WEIGHTS: &[u8] = include_bytes!("../ember/model.safetensors");

/// Opens it where it lies, in the binary.
pub fn checkpoint() -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_bytes(NAME, CONFIG, GENERATION_CONFIG, WEIGHTS)
}

/// Its weights as they lie there, for a digest.
pub fn weights() -> &'static [u8] {
    WEIGHTS
}

#[cfg(test)]
mod tests {
    #[test]
    fn ember_opens_and_is_small() {
        let checkpoint = super::checkpoint().unwrap_or_else(|e| panic!("{e}"));
        assert!((1_000_000..8_000_000).contains(&checkpoint.parameters()));
        assert!(super::WEIGHTS.len() <= 8 << 20, "{} bytes in the binary", super::WEIGHTS.len());
        assert!(!checkpoint.spec().eos.is_empty());
        assert_eq!(checkpoint.ignored(), [] as [String; 0]);
    }
}
