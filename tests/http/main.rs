//! The HTTP surface on real sockets, with a scripted executor in place of a model: its answers are known, so that
//! every shape, every limit and every error can be said exactly.

mod access;
mod bad_input;
mod chat;
mod client;
mod completions;
mod guard;
mod hostile;
mod life;
mod site;
