//! The way to a port inside: small requests at once, one after the other, and one long answer; each beside the same program on the
//! host, reached without Sandbank.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Settings, id_of, put_program, release, wait_gone};
use crate::backend::{BIG_BYTES, SMALL};
use crate::client::Client;
use crate::report::{Row, Samples};
use crate::{BenchError, Result};

const PORT: u16 = 8000;
const CONNECTIONS: usize = 16;
/// Longest time of requests at once; `--seconds` may say less.
const SECONDS_MAX: u64 = 10;
const DOWNLOADS: usize = 3;
const MIB: f64 = 1024.0 * 1024.0;
/// Growth of the server that counts as flat: what allocators keep, not what answers weigh.
const FLAT_MIB: f64 = 32.0;

pub(crate) async fn ports(settings: &Settings) -> Result<Vec<Row>> {
    let server = settings.server().await?;
    let mut client = server.client().await?;
    let id = id_of(&client.post("/v1/sandboxes", &json!({ "image": "host", "memory": "1Gi" }), StatusCode::CREATED).await?)?;
    start_inside(&mut client, &id).await?;
    let token = client.post(&format!("/v1/sandboxes/{id}/port-tokens"), &json!({ "port": PORT }), StatusCode::CREATED).await?;
    let token = token["token"].as_str().ok_or_else(|| BenchError::new("no token"))?;
    let proxied = Way {
        address: server.address,
        host: format!("{PORT}-{id}.localhost"),
        field: format!("x-sandbank-port-token: {token}\r\n"),
    };
    let beside = Beside::start()?;
    let direct = Way { address: beside.address, host: "localhost".to_owned(), field: String::new() };
    for way in [&proxied, &direct] {
        way.wait().await?;
    }
    let before = server.memory_begin()?;
    let seconds = Duration::from_secs(settings.seconds.clamp(1, SECONDS_MAX));
    let mut rows = at_once(&proxied, &direct, seconds).await?;
    rows.extend(one_after_the_other(&proxied, &direct, settings.repeat.max(100)).await?);
    rows.extend(downloads(&proxied, &direct).await?);
    let grown = server.memory_peak()?.saturating_sub(before) as f64 / MIB;
    rows.push(Row::number("ports: growth of the server meanwhile", grown, "MiB", 1).target("<= 32 MiB", grown <= FLAT_MIB));
    release(&mut client, &id).await?;
    wait_gone(&server).await?;
    Ok(rows)
}

/// Starts this program in the sandbox.
async fn start_inside(client: &mut Client, id: &str) -> Result<()> {
    put_program(client, id, "/tmp/backend").await?;
    let script = format!("setsid /tmp/backend backend {PORT} </dev/null >/dev/null 2>&1 &");
    let body = json!({ "command": ["sh", "-c", script] });
    client.post(&format!("/v1/sandboxes/{id}/exec"), &body, StatusCode::OK).await.map(drop)
}

/// The same program on the host.
struct Beside {
    child: Child,
    address: SocketAddr,
}

impl Beside {
    fn start() -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["backend", &address.port().to_string()]).stdin(Stdio::null());
        Ok(Self { child: command.spawn()?, address })
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A way to the program.
struct Way {
    address: SocketAddr,
    host: String,
    /// Header line that opens it.
    field: String,
}

impl Way {
    async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let Self { host, field, .. } = self;
        let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{field}\r\n").into_bytes();
        Ok(Connection { stream, small: ask("/small"), big: ask("/big"), buffer: vec![0; 1024 * 1024] })
    }

    /// Until the program listens.
    async fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answered = match self.connect().await {
                Ok(mut connection) => connection.small().await,
                Err(error) => Err(error),
            };
            match answered {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// A kept-alive connection of a client that does nothing but what it must: the generator shares the machine with what it measures.
struct Connection {
    stream: TcpStream,
    small: Vec<u8>,
    big: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection {
    async fn small(&mut self) -> Result<()> {
        self.stream.write_all(&self.small).await?;
        let (head, filled) = self.head().await?;
        let mut filled = filled;
        while filled < head + SMALL.len() {
            filled += self.more(filled).await?;
        }
        if &self.buffer[head..filled] == SMALL { Ok(()) } else { Err(BenchError::new("another answer than was sent")) }
    }

    async fn big(&mut self) -> Result<()> {
        self.stream.write_all(&self.big).await?;
        let (head, filled) = self.head().await?;
        let mut left = BIG_BYTES - (filled - head) as u64;
        while left > 0 {
            left = left.saturating_sub(self.more(0).await? as u64);
        }
        Ok(())
    }

    /// Where the head of a successful answer ends, and how much has come.
    async fn head(&mut self) -> Result<(usize, usize)> {
        let mut filled = 0;
        loop {
            filled += self.more(filled).await?;
            if let Some(end) = self.buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n") {
                if self.buffer.starts_with(b"HTTP/1.1 200 ") {
                    return Ok((end + 4, filled));
                }
                let line = String::from_utf8_lossy(&self.buffer[..filled.min(300)]).into_owned();
                return Err(BenchError::new(format!("the port answered {line}")));
            }
        }
    }

    async fn more(&mut self, at: usize) -> Result<usize> {
        match self.stream.read(&mut self.buffer[at..]).await? {
            0 => Err(BenchError::new("the connection ended in the middle of an answer")),
            count => Ok(count),
        }
    }
}

async fn at_once(proxied: &Way, direct: &Way, seconds: Duration) -> Result<Vec<Row>> {
    let direct = rate(direct, seconds).await?;
    let through = rate(proxied, seconds).await?;
    let note = format!("{:.0} % of the row above", through / direct * 100.0);
    let n = |rate: f64| (rate * seconds.as_secs_f64()) as u64;
    Ok(vec![
        Row::number("port on the host, 16 connections", direct, "requests/s", n(direct)),
        Row::number("port inside, 16 connections", through, "requests/s", n(through))
            .note(note)
            .target(">= 10000 /s", through >= 10_000.0),
    ])
}

/// Requests a second over all connections.
async fn rate(way: &Way, seconds: Duration) -> Result<f64> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(way.connect().await?);
    }
    let begun = Instant::now();
    let counts = futures_util::future::try_join_all(connections.into_iter().map(|mut connection| async move {
        let mut count = 0u64;
        while begun.elapsed() < seconds {
            connection.small().await?;
            count += 1;
        }
        Ok::<_, BenchError>(count)
    }));
    let total: u64 = counts.await?.into_iter().sum();
    Ok(total as f64 / begun.elapsed().as_secs_f64())
}

async fn one_after_the_other(proxied: &Way, direct: &Way, repeat: u32) -> Result<Vec<Row>> {
    let (mut beside, mut through) = (direct.connect().await?, proxied.connect().await?);
    let (mut without, mut with) = (Samples::new(), Samples::new());
    // In turns: a machine that gets slower gets slower for both.
    for _ in 0..repeat {
        for (connection, samples) in [(&mut beside, &mut without), (&mut through, &mut with)] {
            let begun = Instant::now();
            connection.small().await?;
            samples.add(begun.elapsed());
        }
    }
    let without = Row::durations("port on the host, one after the other", &without);
    let with = Row::durations("port inside, one after the other", &with);
    let added = with.p50.unwrap_or(f64::MAX) - without.p50.unwrap_or(0.0);
    let added_row = Row::number("port inside, added at p50", added, "ms", u64::from(repeat)).target("<= 0.2 ms", added <= 0.2);
    Ok(vec![without, with, added_row])
}

async fn downloads(proxied: &Way, direct: &Way) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, way, wanted) in [("1 GiB from a port on the host", direct, false), ("1 GiB from a port inside", proxied, true)] {
        let mut connection = way.connect().await?;
        let mut rates = Vec::new();
        for _ in 0..DOWNLOADS {
            let begun = Instant::now();
            connection.big().await?;
            rates.push(BIG_BYTES as f64 / MIB / begun.elapsed().as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        let note = format!("median of {}, {:.0} to {:.0}", rates.len(), rates[0], rates[rates.len() - 1]);
        let row = Row::number(name, median, "MiB/s", rates.len() as u64).note(note);
        rows.push(if wanted { row.target(">= 800 MiB/s", median >= 800.0) } else { row });
    }
    Ok(rows)
}
