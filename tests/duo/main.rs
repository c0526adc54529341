//! The GitLab dialect on real sockets, with a scripted executor in place of a model: its answers are known, so that
//! every shape, every limit and every error can be said exactly.

mod chat;
mod choice;
#[path = "../http/client.rs"]
mod client;
mod code;
mod edge;
mod forgeries;
mod forms;
#[path = "../gitlab/mod.rs"]
mod gitlab;
mod identity;
mod keys;
mod log;
mod prompts;
#[path = "../upstream/scripted.rs"]
mod scripted;
mod search;
mod site;
mod strangers;
mod table;
mod upstream;
mod users;
