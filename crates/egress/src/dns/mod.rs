//! Names: what sandboxes ask, and what we ask for them.

mod answer;
mod cache;
mod resolver;
mod server;
mod upstream;

pub(crate) use resolver::Resolver;
pub(crate) use server::{serve_tcp, serve_udp};
