//! The services on loopback: real sockets, a DNS server and web servers that the tests make. Sandboxes are told apart by their
//! source addresses `127.0.0.x`.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod dns;
mod http;

mod secrets;
mod support;
mod tls;
mod transfer;
