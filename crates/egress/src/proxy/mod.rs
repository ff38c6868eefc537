//! The checking proxy: redirected connections come in, are judged by the name that they ask for, and go out from the host.

mod backend;
mod connection;
mod dial;
mod headers;
mod hello;
mod refusal;
mod request;
mod stream;
mod target;
mod tls;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use backend::Outside;
use connection::Connection;

use crate::services::{ProxySocket, Shared};
use crate::telemetry;

/// How long to rest when the system has no descriptor or memory for the next connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a socket expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxyKind {
    /// TLS, judged by its server name.
    Tls,
    /// HTTP/1, judged by each request's host.
    Http,
}

impl ProxyKind {
    /// As a label.
    fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http => "http",
        }
    }
}

/// Serves connections until the services stop.
pub(crate) async fn serve(shared: Arc<Shared>, socket: ProxySocket, kind: ProxyKind) {
    while let Some((stream, source)) = shared.accept(&socket.listener, ACCEPT_PAUSE).await {
        let Some((network, usage)) = shared.sandbox(source.ip()) else {
            telemetry::connection(kind.name(), "unknown");
            continue;
        };
        let Some(place) = shared.usage.connection_place(&usage) else {
            telemetry::connection(kind.name(), "limited");
            continue;
        };
        let connection = Connection::new(&shared, source.ip(), network.id(), socket.port, kind, &usage);
        shared.spawn(async move {
            let _place = place;
            connection.run(stream).await;
        });
    }
}
