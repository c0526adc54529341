//! Hearth: the GitLab AI gateway, an OpenAI-compatible endpoint, the scheduler and the runtime in one process.

pub mod engine;
pub mod text;
