//! Hearth: the GitLab AI gateway, an OpenAI-compatible endpoint, the scheduler and the runtime in one process.

pub mod access;
pub mod admin;
pub mod audit;
pub mod bench;
pub mod bundle;
pub mod cli;
pub mod config;
pub mod console;
pub mod doctor;
pub mod duo;
pub mod engine;
pub mod fit;
pub mod gpu;
pub mod log;
pub mod nearest;
pub mod openai;
pub mod outbound;
pub mod reload;
pub mod served;
pub mod server;
pub mod store;
pub mod supervisor;
pub mod text;
pub mod upstream;
