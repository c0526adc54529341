//! Upstreams: servers that answer as OpenAI's protocol says, servers that do not, and a second Hearth.

mod asked;
mod passed;
mod scripted;
mod second;
#[path = "../served/mod.rs"]
mod served;
