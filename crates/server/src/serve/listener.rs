//! Connections: accepted within a bound, served over HTTP/1.1 and HTTP/2, ended gracefully.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

/// Longest time for a request's head to come. A connection that says nothing holds a place no longer than this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest request head, bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Requests at the same time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// Longest silence before a client is asked whether it is there, how often it is asked, and how many times.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;
/// Pause after a failed accept: when descriptors have run out, trying at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// All connections of the server.
pub(crate) struct Connections {
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    ending: watch::Sender<bool>,
    builder: Arc<Builder<TokioExecutor>>,
}

impl Connections {
    /// At most `max` at the same time.
    pub(crate) fn new(max: usize) -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX.max(8192));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(64 * 1024)
            // WebSockets over HTTP/2 (RFC 8441).
            .enable_connect_protocol()
            .adaptive_window(true);
        Self {
            places: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))),
            tasks: TaskTracker::new(),
            ending: watch::Sender::new(false),
            builder: Arc::new(builder),
        }
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Accepts for as long as it is polled.
    pub(crate) async fn accept(&self, listener: TcpListener, router: Router) {
        loop {
            // The semaphore is never closed; were it, nothing more could be accepted.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let serving = serve(Arc::clone(&self.builder), stream, peer, router.clone(), self.ending.subscribe());
                    self.tasks.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Lets open requests finish, at most for `grace`.
    pub(crate) async fn drain(&self, grace: Duration) {
        self.ending.send_replace(true);
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            tracing::warn!(open_connections = self.tasks.len(), "cutting off connections that did not end in time");
        }
    }
}

/// Waits until the server is ending.
async fn told(ending: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, which is the end too.
    let _ = ending.wait_for(|ending| *ending).await;
}

/// Lets the kernel ask a silent client whether it is still there: one that vanished without a word would hold its place, and its
/// stream into a sandbox, for ever.
fn notice_vanished(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, SILENCE_MAX)?;
    set_tcp_keepintvl(stream, PROBE_INTERVAL)?;
    set_tcp_keepcnt(stream, PROBES)
}

async fn serve(
    builder: Arc<Builder<TokioExecutor>>,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    mut ending: watch::Receiver<bool>,
) {
    // Answers are small and latency is what we sell: never wait for more to send.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    if let Err(error) = notice_vanished(&stream) {
        tracing::debug!(%error, "cannot set SO_KEEPALIVE");
    }
    let service = router.map_request(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.map(axum::body::Body::new)
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = told(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "connection ended with an error");
    }
}
