//! Code suggestions over real sockets, with the bodies that GitLab's versions and the language server send.

mod bodies;
mod completions;
mod events;
mod generations;
mod life;
mod prompts;
