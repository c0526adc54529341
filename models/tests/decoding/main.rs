//! The decoder on the golden checkpoints (tests/golden/make.py says how they were made).
//!
//! `cargo nextest run -p hearth-models --test decoding --no-capture` prints the tables.

mod golden;
mod loading;
mod meeting;
mod parity;
mod schedules;
mod sharding;
