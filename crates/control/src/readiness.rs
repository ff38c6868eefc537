//! Runtimes of a sandbox and whether they are ready.

use std::sync::Arc;
use std::time::Duration;

use sandbank_model::{Probe, Runtime, Sandbox};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Result;
use crate::control::{Control, Inner};
use crate::types::{Caller, Id, Readiness};

/// Longest time for one probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of an answer that are looked at: the status line is at its beginning.
const ANSWER_MAX: usize = 64;

impl Control {
    /// Services that the sandbox's template offers.
    pub async fn runtimes(&self, caller: &Caller, id: Id) -> Result<Vec<Runtime>> {
        let sandbox = self.inner.sandbox_of(caller, id).await?;
        self.inner.runtimes_of(&sandbox).await
    }

    /// Runs the runtimes' probes now; a runtime without one counts as ready.
    pub async fn readiness(&self, caller: &Caller, id: Id) -> Result<Vec<Readiness>> {
        let sandbox = self.inner.running(caller, id).await?;
        let runtimes = self.inner.runtimes_of(&sandbox).await?;
        Ok(futures_util::future::join_all(runtimes.into_iter().map(|runtime| self.probe(caller, id, runtime))).await)
    }

    async fn probe(&self, caller: &Caller, id: Id, runtime: Runtime) -> Readiness {
        let seen = match &runtime.readiness {
            None => Ok("no probe: counts as ready".to_owned()),
            Some(probe) => {
                let probing = async {
                    match probe {
                        Probe::TcpConnect { port } => {
                            let dialled = self.port_dial(caller, id, *port).await.map_err(|error| error.message);
                            dialled.map(|_| format!("port {port} accepts connections"))
                        }
                        Probe::HttpGet { port, path } => self.http_get(caller, id, *port, path).await,
                    }
                };
                tokio::time::timeout(PROBE_TIMEOUT, probing).await.unwrap_or_else(|_| Err("the probe timed out".to_owned()))
            }
        };
        let ready = seen.is_ok();
        Readiness { name: runtime.name, ready, message: seen.unwrap_or_else(|why| why) }
    }

    async fn http_get(&self, caller: &Caller, id: Id, port: u16, path: &str) -> std::result::Result<String, String> {
        if path.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err(format!("the probe's path {path:?} holds blanks or control characters"));
        }
        let stream = self.port_dial(caller, id, port).await.map_err(|error| error.message)?;
        let (mut reader, mut writer) = stream.into_split();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
        writer.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        writer.flush().await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        while answer.len() < ANSWER_MAX && !answer.contains(&b'\n') {
            let mut piece = [0; ANSWER_MAX];
            match reader.read(&mut piece).await {
                Ok(0) => break,
                Ok(read) => answer.extend_from_slice(&piece[..read]),
                Err(error) => return Err(error.to_string()),
            }
        }
        match status_of(&answer) {
            Some(status @ 200..=399) => Ok(format!("GET {path} answered {status}")),
            Some(status) => Err(format!("GET {path} answered {status}")),
            None => Err(format!("port {port} did not answer in HTTP")),
        }
    }
}

/// The status in `HTTP/1.1 200 OK`.
fn status_of(answer: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(answer.split(|byte| *byte == b'\r' || *byte == b'\n').next()?).ok()?;
    let mut words = text.split(' ');
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

impl Inner {
    /// The runtimes of the template that it was made from; its pool's copy where there is one.
    pub(crate) async fn runtimes_of(self: &Arc<Self>, sandbox: &Sandbox) -> Result<Vec<Runtime>> {
        if let Some(id) = sandbox.pool
            && let Some(pool) = self.store.pool_by_id(id).await?
        {
            return Ok(pool.template_spec.runtimes);
        }
        if let Some(reference) = &sandbox.template
            && let Some(template) = self.store.template_by_id(reference.id).await?
        {
            return Ok(template.spec.runtimes);
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::status_of;

    #[test]
    fn only_an_http_status_line_has_a_status() {
        assert_eq!(status_of(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status_of(b"HTTP/1.0 200\r\n"), Some(200));
        for nonsense in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n", b"\xff\xfe"] {
            assert_eq!(status_of(nonsense), None);
        }
    }
}
