//! A request inside the engine.

use std::time::Duration;

use super::handle::Permit;
use super::request::Request;
use super::stream::Events;

pub(crate) struct Group {
    pub request: Request,
    /// Length, prompt and output, at which each choice ends.
    pub limit: u32,
    pub events: Events,
    pub permit: Option<Permit>,
    pub submitted: Duration,
}

impl Group {
    pub fn new(request: Request, limit: u32, events: Events, permit: Permit, now: Duration) -> Self {
        Self { request, limit, events, permit: Some(permit), submitted: now }
    }
}
