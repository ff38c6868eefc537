//! A program in a sandbox, connected to this process's own standard streams over the WebSocket of
//! `GET /v1/sandboxes/{id}/exec/ws`.

use std::io::IsTerminal as _;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::terminal::{self, RawTerminal};
use super::{Client, encode_segment, explain};
use crate::failure::{Failure, Result};

/// Bytes read from standard input at a time.
const STDIN_CHUNK: usize = 32 * 1024;
/// Largest message accepted from the server.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Exit code of a program that was killed because its time was up (as coreutils' `timeout`).
const TIMED_OUT: u8 = 124;
/// Interrupts that are passed on before the program is killed.
const INTERRUPTS_MAX: u32 = 3;

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// What to run, and how it is connected.
#[derive(Debug, Clone)]
pub(crate) struct Exec {
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// Environment.
    pub(crate) env: serde_json::Map<String, Value>,
    /// Working directory.
    pub(crate) cwd: Option<String>,
    /// User.
    pub(crate) user: Option<String>,
    /// Pass standard input on.
    pub(crate) stdin: bool,
    /// Run on a terminal.
    pub(crate) tty: bool,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Runs it to its end; gives its exit code. Errors are of the sandbox or the connection, never the program's.
pub(crate) async fn run(client: &Client, sandbox: &str, exec: &Exec) -> Result<u8> {
    // Before the connection: a terminal that cannot be made raw must not start anything.
    let raw = if exec.tty { Some(RawTerminal::enter()?) } else { None };
    let mut signals = Signals::new()?;
    let mut socket = connect(client, sandbox).await?;
    let mut request = json!({ "command": exec.argv, "env": exec.env, "stdin": exec.stdin || exec.tty });
    if let Some(cwd) = &exec.cwd {
        request["cwd"] = json!(cwd);
    }
    if let Some(user) = &exec.user {
        request["user"] = json!(user);
    }
    if exec.tty {
        let (cols, rows) = terminal::size();
        request["tty"] = json!({ "cols": cols, "rows": rows });
    }
    send(&mut socket, text(&request)).await?;
    let mut input = if exec.stdin || exec.tty { Some(read_stdin()) } else { None };
    let outcome = pump(&mut socket, &mut input, &mut signals, exec.tty).await;
    drop(raw);
    let code = outcome?;
    // The program has ended: a server that is slow to say goodbye changes nothing.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(200), socket.close(None)).await;
    Ok(code)
}

async fn connect(client: &Client, sandbox: &str) -> Result<Socket> {
    let request = client.websocket_request(&format!("/v1/sandboxes/{}/exec/ws", encode_segment(sandbox)))?;
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    match tokio_tungstenite::connect_async_with_config(request, Some(config), true).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => {
            Err(Failure::new(explain(response.status(), response.body().as_deref().unwrap_or_default())))
        }
        Err(error) => {
            Err(Failure::new(format!("cannot reach the server at {}: {error}; is the server running there?", client.base())))
        }
    }
}

/// Moves bytes both ways until the program has ended.
async fn pump(socket: &mut Socket, input: &mut Option<mpsc::Receiver<Bytes>>, signals: &mut Signals, tty: bool) -> Result<u8> {
    let mut output = Output::new();
    let mut interrupts = 0;
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message)) => {
                    if let Some(code) = output.take(message).await? {
                        return Ok(code);
                    }
                }
                Some(Err(error)) => return Err(lost(&error)),
                None => return Err(Failure::new("the connection ended before the program did: the sandbox or the server went away")),
            },
            chunk = next_input(input) => match chunk {
                Some(chunk) => send(socket, Message::Binary(chunk)).await?,
                None => {
                    *input = None;
                    send(socket, text(&json!({ "type": "eof" }))).await?;
                }
            },
            number = signals.next() => match number {
                Some(number) => {
                    interrupts += 1;
                    let number = if interrupts > INTERRUPTS_MAX { SIGKILL } else { number };
                    send(socket, text(&json!({ "type": "signal", "signal": number }))).await?;
                }
                None if tty => {
                    let (cols, rows) = terminal::size();
                    send(socket, text(&json!({ "type": "resize", "cols": cols, "rows": rows }))).await?;
                }
                None => {}
            },
        }
    }
}

/// Waits for ever when there is no input.
async fn next_input(input: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads standard input on a thread of its own, a few chunks ahead at most.
fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; STDIN_CHUNK];
        // An error reads as the end: the program then sees the end of its input.
        while let Ok(count @ 1..) = stdin.read(&mut buffer).await {
            if sender.send(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// This process's own output streams, and what the server's messages mean for them.
struct Output {
    stdout: tokio::io::Stdout,
    stderr: tokio::io::Stderr,
}

impl Output {
    fn new() -> Self {
        Self { stdout: tokio::io::stdout(), stderr: tokio::io::stderr() }
    }

    /// Handles one message; the exit code when it was the last.
    async fn take(&mut self, message: Message) -> Result<Option<u8>> {
        match message {
            Message::Binary(data) => self.write(&data).await.map(|()| None),
            Message::Text(body) => event(&body),
            Message::Close(frame) => {
                let why = frame.map(|frame| frame.reason.to_string()).filter(|why| !why.is_empty());
                Err(Failure::new(why.unwrap_or_else(|| "the server closed the connection before the program ended".to_owned())))
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(None),
        }
    }

    /// Writes one frame of output: a byte that names the stream, then the bytes.
    async fn write(&mut self, frame: &[u8]) -> Result<()> {
        let written = match frame.split_first() {
            Some((2, data)) => match self.stderr.write_all(data).await {
                Ok(()) => self.stderr.flush().await,
                error => error,
            },
            Some((_, data)) => match self.stdout.write_all(data).await {
                Ok(()) => self.stdout.flush().await,
                error => error,
            },
            None => Ok(()),
        };
        written.map_err(|error| Failure::output(&error))
    }
}

/// What a control message means: `started`, `exited` or `error`.
fn event(body: &str) -> Result<Option<u8>> {
    let event: Value = serde_json::from_str(body)
        .map_err(|error| Failure::new(format!("the server sent a message that is not JSON: {error}")))?;
    match event.get("type").and_then(Value::as_str) {
        Some("exited") => Ok(Some(exit_code(&event))),
        Some("error") => {
            let why = event.get("error").and_then(Value::as_str).unwrap_or("the server did not say why");
            Err(Failure::new(why.replace('\n', " ")))
        }
        _ => Ok(None),
    }
}

/// The shell's view of how a program ended: its code, 128 + signal, or 124 when its time was up.
fn exit_code(event: &Value) -> u8 {
    if event.get("timedOut").and_then(Value::as_bool) == Some(true) {
        return TIMED_OUT;
    }
    let code = match event.get("signal").and_then(Value::as_i64) {
        Some(signal) => 128 + signal,
        None => event.get("exitCode").and_then(Value::as_i64).unwrap_or(i64::from(Failure::INFRASTRUCTURE)),
    };
    u8::try_from(code & 0xff).unwrap_or(Failure::INFRASTRUCTURE)
}

fn text(value: &Value) -> Message {
    Message::text(value.to_string())
}

async fn send(socket: &mut Socket, message: Message) -> Result<()> {
    match socket.send(message).await {
        // The program may have ended while we were writing: its last words are still to be read.
        Ok(()) | Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => Ok(()),
        Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(lost(&error)),
    }
}

fn lost(error: &tungstenite::Error) -> Failure {
    Failure::new(format!("the connection to the sandbox broke: {error}"))
}

/// Signals that are the program's business, not ours.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    window: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let watch = |kind| signal(kind).map_err(|error| Failure::new(format!("cannot watch for signals: {error}")));
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
            window: watch(SignalKind::window_change())?,
        })
    }

    /// The next signal to pass on; `None` when the terminal changed its size.
    async fn next(&mut self) -> Option<i32> {
        tokio::select! {
            _ = self.interrupt.recv() => Some(SIGINT),
            _ = self.terminate.recv() => Some(SIGTERM),
            // The person is gone; the program is told what a shell would be told.
            _ = self.hangup.recv() => Some(SIGTERM),
            _ = self.window.recv() => None,
        }
    }
}

/// Whether a person watches standard error.
pub(crate) fn person_watches() -> bool {
    std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_exit_code_is_the_shells() {
        assert_eq!(exit_code(&json!({ "exitCode": 7, "signal": null, "timedOut": false })), 7);
        assert_eq!(exit_code(&json!({ "exitCode": 137, "signal": 9 })), 137);
        assert_eq!(exit_code(&json!({ "exitCode": -1, "signal": 15 })), 143);
        assert_eq!(exit_code(&json!({ "exitCode": 137, "signal": 9, "timedOut": true })), 124);
        assert_eq!(exit_code(&json!({})), 125);
    }

    #[test]
    fn messages_of_the_server_are_understood() {
        assert_eq!(event(r#"{"type":"started","pid":3}"#).unwrap(), None);
        assert_eq!(event(r#"{"type":"exited","exitCode":0}"#).unwrap(), Some(0));
        assert_eq!(event(r#"{"type":"error","error":"no such\nfile"}"#).unwrap_err().to_string(), "no such file");
        assert!(event("nonsense").is_err());
    }
}
