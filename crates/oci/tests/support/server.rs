//! A registry that does as it is told, also wrong. Speaks HTTP/1.1, one request a connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What came in.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: HashMap<String, String>,
    /// How often this path was asked for before.
    pub before: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What goes out.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Sends so much of the body, then hangs up.
    pub cut_at: Option<usize>,
    /// Sends so much of the body, then nothing more.
    pub stall_at: Option<usize>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn cut_at(self, at: usize) -> Self {
        Self { cut_at: Some(at), ..self }
    }

    pub fn stall_at(self, at: usize) -> Self {
        Self { stall_at: Some(at), ..self }
    }
}

type Rule = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

/// Serves until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves what `rule` says.
    pub async fn start(rule: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), rule).await
    }

    /// As [`Server::start`], where it was before.
    pub async fn start_at(address: SocketAddr, rule: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (rule, log): (Arc<Rule>, _) = (Arc::new(rule), requests.clone());
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (rule, log) = (rule.clone(), log.clone());
                tokio::spawn(async move {
                    let _ = serve(connection, &*rule, &log).await;
                });
            }
        });
        Self { address, requests, task }
    }

    /// Everything that was asked for, but for the question whether this is TLS.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn requests_of(&self, part: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path.contains(part)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut connection: TcpStream, rule: &Rule, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = connection.read_u8().await?;
        head.push(byte);
        if head[0] == 0x16 {
            return connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_lowercase(), v.to_owned())).collect();
    let request = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|earlier| earlier.path == path).count();
        let request = Request { path, headers, before };
        log.push(request.clone());
        request
    };
    let reply = rule(&request).unwrap_or_else(|| Reply::new(404, "{}"));
    let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name == "Content-Length") {
        text += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    connection.write_all(format!("{text}\r\n").as_bytes()).await?;
    let end = reply.cut_at.or(reply.stall_at).unwrap_or(reply.body.len()).min(reply.body.len());
    connection.write_all(&reply.body[..end]).await?;
    connection.flush().await?;
    if reply.stall_at.is_some() {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    connection.shutdown().await
}

/// Answers as a registry that keeps what is in the layout at `directory`; `ranges` says whether it understands them.
pub fn registry_reply(directory: &Path, request: &Request, ranges: bool) -> Option<Reply> {
    let path = request.path.split('?').next()?;
    let blob = |digest: &str| std::fs::read(directory.join("blobs/sha256").join(digest.strip_prefix("sha256:")?)).ok();
    if let Some((_, key)) = path.split_once("/manifests/") {
        let content = blob(key).or_else(|| {
            let index: serde_json::Value = serde_json::from_slice(&std::fs::read(directory.join("index.json")).ok()?).ok()?;
            let entries = index["manifests"].as_array()?.clone();
            let entry = entries.iter().find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == key)?;
            blob(entry["digest"].as_str()?)
        })?;
        let kind: serde_json::Value = serde_json::from_slice(&content).ok()?;
        let media_type = kind["mediaType"].as_str().unwrap_or(super::OCI_MANIFEST).to_owned();
        return Some(Reply::new(200, content).with("Content-Type", media_type));
    }
    let (_, digest) = path.split_once("/blobs/")?;
    let content = blob(digest)?;
    let from = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) if ranges => {
            let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            Some(Reply::new(206, &content[from..]).with("Content-Range", range))
        }
        _ => Some(Reply::new(200, content)),
    }
}
