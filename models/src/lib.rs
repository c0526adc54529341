//! What a model is: its [`spec`] (read from the checkpoint's own config.json), its weights, and the one decoder that
//! runs every supported family.

pub mod catalog;
pub mod checkpoint;
pub mod decoder;
pub mod device;
#[cfg(feature = "ember")]
pub mod ember;
pub mod host;
pub mod inspect;
pub mod layout;
pub mod memory;
pub mod shard;
pub mod spec;
pub mod step;
mod widen;
