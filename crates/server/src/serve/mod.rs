//! `serve`: the server's life from configuration to the last connection.

mod egress;
mod listener;
mod notify;
mod signals;
mod system;
mod telemetry;
mod up;
mod wiring;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbank_control::SecretKey;
use tokio::net::TcpSocket;

pub(crate) use up::UpOptions;

use crate::cli::{self, Global};
use crate::client::Client;
use crate::config::{Config, Given};
use crate::data_dir::{DataDir, ServerFile, parse_secret_key, read_secret_key};
use crate::failure::{Failure, Result};
use crate::output;
use signals::Stop;

/// Longest time from the first signal to the end. Sandboxes outlive the server.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Connections that the kernel keeps while none is accepted.
const BACKLOG: u32 = 1024;
/// Variable with the key that seals tenants' secrets.
const SECRET_KEY: &str = "SANDBANK_SECRET_KEY";

/// Runs the server until a signal ends it.
pub(crate) fn run(global: &Global, options: cli::Serve, up: Option<UpOptions>) -> Result<u8> {
    let config = Config::load(&Given {
        config: global.config.clone(),
        data_dir: global.data_dir.clone(),
        listen: options.listen,
        admin_key: options.admin_key,
    })?;
    telemetry::logging(&config.log, up.is_some())?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let keys = Keys { admin: admin_key(&config, &data_dir, up.is_some())?, secret: secret_key(&config, &data_dir)? };
    system::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("sandbank")
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(serve(&config, &data_dir, &keys, up));
    data_dir.unpublish();
    // What is still open after the grace is cut off.
    runtime.shutdown_background();
    outcome.map(|()| 0)
}

/// The keys in force.
struct Keys {
    /// Opens everything.
    admin: String,
    /// Seals tenants' secrets.
    secret: SecretKey,
}

/// The key that seals tenants' secrets: `SANDBANK_SECRET_KEY`, else the configuration's file, else the one in the data directory,
/// made at the first start. There is no option for it, because options are seen by every user of the machine.
fn secret_key(config: &Config, data_dir: &DataDir) -> Result<SecretKey> {
    if let Some(text) = std::env::var_os(SECRET_KEY).filter(|text| !text.is_empty()) {
        return parse_secret_key(text.to_str().unwrap_or_default(), SECRET_KEY);
    }
    if let Some(path) = &config.secret_key_file {
        let missing = || Failure::new(format!("secret_key_file: there is no file {}", path.display()));
        return read_secret_key(path)?.ok_or_else(missing);
    }
    let mut random = [0; 32];
    system::fill_random(&mut random)?;
    data_dir.secret_key(random)
}

/// The key in force: the operator's, else the one in the data directory, made and shown once at the first start.
fn admin_key(config: &Config, data_dir: &DataDir, quiet: bool) -> Result<String> {
    if let Some(key) = &config.admin_key {
        return Ok(key.clone());
    }
    let mut random = [0; 32];
    system::fill_random(&mut random)?;
    let (key, fresh) = data_dir.admin_key(random)?;
    if fresh && !quiet {
        // To standard error, never into the log: the log is kept and copied.
        output::note(&format!("sandbank: made an admin key, kept in {}: {key}", data_dir.path().join("admin.key").display()));
    }
    Ok(key)
}

async fn serve(config: &Config, data_dir: &DataDir, keys: &Keys, up: Option<UpOptions>) -> Result<()> {
    let mut stop = Stop::watch()?;
    // Bound now, so that a port in use is told before anything is touched; open only after recovery.
    let socket = bind(config.listen)?;
    let parts = tokio::select! {
        parts = wiring::start(config, data_dir, &keys.admin, &keys.secret) => parts?,
        () = stop.requested() => return Ok(()),
    };
    let listener = socket.listen(BACKLOG).map_err(|error| cannot_listen(config.listen, &error))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(config.listen, &error))?;
    let notice = ServerFile::here(address);
    data_dir.publish(&notice)?;
    tracing::info!(%address, data_dir = %data_dir.path().display(), version = env!("CARGO_PKG_VERSION"), "serving");
    notify::send("READY=1");
    let connections = listener::Connections::new(config.connections_max);
    let guide = up.map(|options| {
        let client = Client::new(&notice.url, &keys.admin);
        let dir = data_dir.path().to_owned();
        tokio::spawn(async move { up::guide(&client?, &dir, &options).await })
    });
    let outcome = tokio::select! {
        () = connections.accept(listener, parts.router.clone()) => Ok(()),
        () = stop.requested() => Ok(()),
        failure = guided(guide) => Err(failure),
    };
    stop.exit_on_repeat();
    shut_down(connections, parts).await;
    outcome
}

/// Waits for ever unless the guide of `up` fails.
async fn guided(guide: Option<tokio::task::JoinHandle<Result<()>>>) -> Failure {
    match guide {
        Some(guide) => match guide.await {
            Ok(Err(failure)) => failure,
            Ok(Ok(())) | Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn shut_down(connections: listener::Connections, parts: wiring::Parts) {
    let deadline = Instant::now() + SHUTDOWN_GRACE;
    notify::send("STOPPING=1");
    tracing::info!(open_connections = connections.open(), "stopping; sandboxes go on");
    if std::io::stderr().is_terminal() && connections.open() > 0 {
        output::note("sandbank: waiting for open requests; press Ctrl-C again to leave at once");
    }
    connections.drain(left(deadline) / 2).await;
    parts.background.shutdown(left(deadline) / 2).await;
    parts.driver.close().await;
    match tokio::time::timeout(left(deadline), Arc::clone(&parts.store).close()).await {
        Ok(Ok(())) => tracing::info!("stopped"),
        Ok(Err(error)) => tracing::error!(%error, "the store did not close cleanly; what was answered is on disk"),
        Err(_) => tracing::error!("the store did not close in time; what was answered is on disk"),
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn bind(address: SocketAddr) -> Result<TcpSocket> {
    let failed = |error: std::io::Error| cannot_listen(address, &error);
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    Ok(socket)
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> Failure {
    let advice = match error.kind() {
        std::io::ErrorKind::AddrInUse => "another program has this port: stop it, or choose another address with --listen",
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need root: choose another address with --listen",
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address: choose another with --listen",
        _ => "choose another address with --listen",
    };
    Failure::new(format!("cannot listen on {address} ({error}): {advice}"))
}
