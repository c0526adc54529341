//! Sizing: how much a server answers within the time that its users have (beside the life of a request: what is here
//! plays the clients).
//!
//! [`profile`] says what people ask, [`arrivals`] when, [`load`] asks it and listens, [`latency`] counts, [`result`] is
//! what is kept of it. [`sweep`] looks for the highest rate that holds the [`limits`], [`sizing`] says for how many people
//! that is, and [`report`] shows it.

pub mod arrivals;
pub mod client;
pub mod latency;
pub mod limits;
pub mod load;
pub mod machine;
pub mod own;
mod plot;
pub mod profile;
mod random;
pub mod report;
pub mod result;
pub mod sizing;
pub mod summary;
pub mod sweep;
pub mod tally;
