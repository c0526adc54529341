//! The front door on real sockets: clients that are slow or hostile, TLS, who may come, and the end of the server.

#[path = "../http/client.rs"]
mod client;
#[allow(dead_code)] // the tests of routes use the rest
#[path = "../http/site.rs"]
mod site;

mod authority;
mod encrypted;
mod floods;
mod hostile;
mod lists;
mod reload;
mod restart;
mod service;
