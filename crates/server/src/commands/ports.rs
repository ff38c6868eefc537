//! Ways to the ports of a sandbox.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::cli::{Forwarded, Port, PortUrl};
use crate::client::{Client, encode_segment};
use crate::config::duration;
use crate::failure::{Failure, Result};
use crate::output::{self, field};

/// Connections that are forwarded at the same time; one more waits.
const CONNECTIONS_MAX: usize = 1024;
/// Pause after a failed accept: when descriptors have run out, trying at once would only burn the processor.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// `port …`.
pub(crate) async fn port(client: &Client, command: Port, json: bool) -> Result<()> {
    match command {
        Port::Url(options) => url(client, &options, json).await,
        Port::Forward(options) => forward(client, &options.id, options.ports).await,
        Port::Close(options) => {
            let sandbox = format!("/v1/sandboxes/{}", encode_segment(&options.id));
            client.delete(&format!("{sandbox}/port-tokens")).await?;
            let now = client.put(&format!("{sandbox}/port-access"), &json!({ "public": false })).await?;
            if json { output::document(&now) } else { output::line(&options.id) }
        }
    }
}

async fn url(client: &Client, options: &PortUrl, json: bool) -> Result<()> {
    let sandbox = format!("/v1/sandboxes/{}", encode_segment(&options.id));
    let unnamed = || Failure::new("this server gives ports no host names: set ports.domain in its configuration");
    if options.public {
        let now = open_to_all(client, &sandbox, options.port).await?;
        let pattern = now.get("urlPattern").and_then(|pattern| pattern.as_str()).ok_or_else(unnamed)?;
        let url = pattern.replace("{port}", &options.port.to_string());
        return if json { output::document(&json!({ "url": url, "access": now })) } else { output::line(&url) };
    }
    let mut body = json!({ "port": options.port });
    if let Some(text) = &options.expires {
        body["expiresInSeconds"] = json!(duration("--expires", text)?.as_secs());
    }
    let token = client.post(&format!("{sandbox}/port-tokens"), &body).await?;
    if json {
        return output::document(&token);
    }
    if token.get("browserUrl").is_none() {
        return Err(unnamed());
    }
    output::line(&field(&token, "browserUrl"))
}

/// Adds the port to the public ones.
async fn open_to_all(client: &Client, sandbox: &str, port: u16) -> Result<serde_json::Value> {
    let path = format!("{sandbox}/port-access");
    let now = client.get(&path).await?;
    let is_public = now.get("public").and_then(serde_json::Value::as_bool).unwrap_or(false);
    let mut ports: Vec<u16> = match now.get("ports").and_then(|ports| ports.as_array()) {
        Some(ports) => ports.iter().filter_map(|port| u16::try_from(port.as_u64()?).ok()).collect(),
        // All are already.
        None if is_public => return Ok(now),
        None => Vec::new(),
    };
    if !ports.contains(&port) {
        ports.push(port);
    }
    client.put(&path, &json!({ "public": true, "ports": ports })).await
}

/// Forwards until interrupted.
async fn forward(client: &Client, id: &str, ports: Forwarded) -> Result<()> {
    let Forwarded { local, inside } = ports;
    // A sandbox that is not there is told now, not at the first connection.
    client.get(&format!("/v1/sandboxes/{}", encode_segment(id))).await?;
    let cannot =
        |error: std::io::Error| Failure::new(format!("cannot listen on 127.0.0.1:{local}: {error}; choose another LOCAL"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local)).await.map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    output::note(&format!("forwarding {address} to port {inside} of {id}; press Ctrl-C to end"));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (client, path) = (client.clone(), format!("/v1/sandboxes/{}/port-tunnel?port={inside}", encode_segment(id)));
                tokio::spawn(async move {
                    if let Err(error) = carry(&client, &path, stream).await {
                        output::note(&format!("sandbank: {error}"));
                    }
                    drop(place);
                });
            }
            Err(error) => {
                output::note(&format!("sandbank: cannot accept a connection: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn carry(client: &Client, path: &str, mut stream: TcpStream) -> Result<()> {
    let mut tunnel = client.tunnel(path).await?;
    let _ = stream.set_nodelay(true);
    // An error means that one side broke off, which ends the other too.
    let _ = copy_bidirectional(&mut stream, &mut tunnel).await;
    Ok(())
}
