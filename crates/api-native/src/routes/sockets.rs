//! WebSockets: the terminal and the interactive exec.
//!
//! Each socket is two loops, output and input, that run side by side; when either ends, the other is dropped, and with it the
//! process stream. Neither loop buffers: a client that does not read stops the process's output at its ring in the agent.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request, State};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::request::Parts;
use sandbank_agent_protocol::Stream as Channel;
use sandbank_control::{Caller, Control, ProcessEvent, ProcessEvents, ProcessInput, ProcessStream};
use sandbank_http::{Query, parse_json};
use sandbank_model::SandboxId;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::app::App;
use crate::convert;
use crate::errors::{ApiError, ApiResult};
use crate::reference::parse_sandbox;
use crate::session::{Session, path_param};
use crate::wire::{ExecSocketStart, ProcessLine, SocketCommand, TerminalQuery};

/// Largest message taken from a client.
const MESSAGE_MAX: usize = 1024 * 1024;
/// Longest wait for the first message of `exec/ws`.
const START_WAIT: Duration = Duration::from_secs(30);
/// How often a silent connection is pinged, so that intermediaries keep it and a dead peer shows.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// RFC 6455 §7.4.1.
mod close {
    pub(super) const NORMAL: u16 = 1000;
    pub(super) const POLICY: u16 = 1008;
    pub(super) const FAILED: u16 = 1011;
}

/// How messages are framed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Raw terminal bytes.
    Terminal,
    /// A byte for the stream in front of each piece, JSON lines for events.
    Exec,
}

/// How a socket ends.
struct End {
    code: u16,
    reason: String,
}

impl End {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        // A close frame has room for 123 bytes (RFC 6455 §5.5).
        let mut reason: String = reason.into();
        while reason.len() > 120 {
            reason.pop();
        }
        Self { code, reason }
    }
}

/// A login shell on a terminal, over a WebSocket
///
/// Server binary messages are terminal bytes; client binary messages, and text that is no command, are input;
/// `{"type":"resize","cols":80,"rows":24}` resizes. The close frame tells the exit code.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/terminal", tag = "sockets", params(TerminalQuery),
    responses((status = 101, description = "A WebSocket.")))]
pub(crate) async fn terminal(State(app): State<App>, request: Request) -> ApiResult<Response> {
    let (mut parts, _) = request.into_parts();
    let query: TerminalQuery = Query::parse(parts.uri.query())?.typed()?;
    let (caller, id) = open(&mut parts, &app, query.token.as_deref()).await?;
    let exec = convert::terminal_model(&query)?;
    let upgrade = upgrade(&mut parts, &app).await?;
    let process = app.control.exec(&caller, id, exec).await.map_err(ApiError::state_is_bad_request)?;
    Ok(upgrade.on_upgrade(move |socket| bridge(socket, process, Dialect::Terminal)))
}

/// Run a command interactively, over a WebSocket
///
/// The first message is the command (`ExecSocketStart`). Then client binary messages are its input, and text messages are
/// `resize`, `signal` and `eof`; server text messages are events, and binary ones its output behind a byte for the stream
/// (1 standard output, 2 standard error, 3 terminal). Closing kills it unless `detach` was given.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/exec/ws", tag = "sockets", params(("token" = Option<String>, Query, description = "Token of `exec-token`, instead of an API key.")),
    responses((status = 101, description = "A WebSocket.")))]
pub(crate) async fn exec(State(app): State<App>, request: Request) -> ApiResult<Response> {
    let (mut parts, _) = request.into_parts();
    let query: TerminalQuery = Query::parse(parts.uri.query())?.typed()?;
    let (caller, id) = open(&mut parts, &app, query.token.as_deref()).await?;
    let upgrade = upgrade(&mut parts, &app).await?;
    Ok(upgrade.on_upgrade(move |socket| start(socket, app.control.clone(), caller, id)))
}

/// Who opens which sandbox: by token, else by key.
async fn open(parts: &mut Parts, app: &App, token: Option<&str>) -> ApiResult<(Caller, SandboxId)> {
    let Some(token) = token else {
        let session = Session::of_parts(parts, app).await?;
        let text = path_param(parts, app, "id").await?;
        return Ok((session.caller, parse_sandbox(&text, &app.settings.cluster_id)?.value));
    };
    let grant = app.tokens.redeem(token, app.control.now());
    let grant = grant
        .ok_or_else(|| ApiError::unauthorized("invalid exec token", Some("a token works once, within 30 seconds".to_owned())))?;
    let text = path_param(parts, app, "id").await?;
    let id = parse_sandbox(&text, &app.settings.cluster_id)?.value;
    if grant.sandbox != id {
        return Err(ApiError::unauthorized("invalid exec token", Some("it was made for another sandbox".to_owned())));
    }
    Ok((grant.caller, id))
}

async fn upgrade(parts: &mut Parts, app: &App) -> ApiResult<WebSocketUpgrade> {
    let upgrade = WebSocketUpgrade::from_request_parts(parts, app)
        .await
        .map_err(|error| ApiError::bad_request(format!("this is a WebSocket endpoint: {error}")))?;
    Ok(upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX).max_write_buffer_size(2 * MESSAGE_MAX))
}

/// Reads the first message of `exec/ws` and goes on as the command.
async fn start(mut socket: WebSocket, control: Control, caller: Caller, id: SandboxId) {
    let first = match timeout(START_WAIT, socket.recv()).await {
        Ok(Some(Ok(Message::Text(text)))) => Ok(text),
        Ok(Some(Ok(_))) => Err("the first message must be JSON text: {\"command\": ...}".to_owned()),
        Ok(Some(Err(_)) | None) => return,
        Err(_) => Err("no command came within 30 seconds".to_owned()),
    };
    let process = match first {
        Ok(text) => launch(&control, &caller, id, text.as_bytes()).await,
        Err(refused) => Err(refused),
    };
    match process {
        Ok(process) => bridge(socket, process, Dialect::Exec).await,
        Err(error) => {
            let end = End::new(close::POLICY, error.clone());
            let _ = socket.send(event_message(&ProcessLine::Error { error })).await;
            let _ = socket.send(close_message(end)).await;
        }
    }
}

async fn launch(control: &Control, caller: &Caller, id: SandboxId, text: &[u8]) -> Result<ProcessStream, String> {
    let start: ExecSocketStart = parse_json(text).map_err(|error| error.message)?;
    let exec = convert::exec_socket_model(start).map_err(|error| error.text().to_owned())?;
    control.exec(caller, id, exec).await.map_err(|error| error.message)
}

/// Joins a socket and a process until one ends.
async fn bridge(socket: WebSocket, process: ProcessStream, dialect: Dialect) {
    let (mut sink, stream) = socket.split();
    let ProcessStream { events, input } = process;
    let end = tokio::select! {
        end = send_output(&mut sink, events, dialect) => end,
        end = take_input(stream, input, dialect) => end,
    };
    if let Some(end) = end {
        let _ = sink.send(close_message(end)).await;
    }
}

/// Sends what the process does. `None` when the client is gone.
async fn send_output(sink: &mut SplitSink<WebSocket, Message>, events: ProcessEvents, dialect: Dialect) -> Option<End> {
    // A stream keeps its pending read between polls, so that a ping in between loses nothing.
    let events = stream::unfold(events, |mut events| async move {
        match events.next().await {
            Ok(None) => None,
            Ok(Some(event)) => Some((Ok(event), events)),
            Err(error) => Some((Err(error), events)),
        }
    });
    let mut events = std::pin::pin!(events);
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.tick().await;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = pings.tick() => {
                sink.send(Message::Ping(Bytes::new())).await.ok()?;
                continue;
            }
        };
        let (message, end) = match event {
            Some(Ok(event)) => describe(event, dialect),
            Some(Err(error)) => {
                let end = End::new(close::FAILED, error.message.clone());
                (Some(event_message(&ProcessLine::Error { error: error.message })), Some(end))
            }
            None => (None, Some(End::new(close::NORMAL, "the process was detached"))),
        };
        // A terminal has no room for events: its client sees the end in the close frame.
        if let Some(message) = message.filter(|message| dialect == Dialect::Exec || matches!(message, Message::Binary(_))) {
            sink.send(message).await.ok()?;
        }
        if end.is_some() {
            return end;
        }
    }
}

fn describe(event: ProcessEvent, dialect: Dialect) -> (Option<Message>, Option<End>) {
    match event {
        ProcessEvent::Started { pid, stdout_offset, stderr_offset } => {
            (Some(event_message(&ProcessLine::Started { pid, stdout_offset, stderr_offset })), None)
        }
        ProcessEvent::Output(channel, data) => (Some(output_message(channel, data, dialect)), None),
        ProcessEvent::Exited(status) => {
            let end = End::new(close::NORMAL, format!("exit code {}", status.shell_code()));
            (Some(event_message(&convert::exited_line(status))), Some(end))
        }
        ProcessEvent::StillRunning => {
            (Some(event_message(&ProcessLine::Running {})), Some(End::new(close::NORMAL, "still running")))
        }
    }
}

fn output_message(channel: Channel, data: Bytes, dialect: Dialect) -> Message {
    if dialect == Dialect::Terminal {
        return Message::Binary(data);
    }
    let mut framed = BytesMut::with_capacity(data.len() + 1);
    framed.put_u8(match channel {
        Channel::Stdout => 1,
        Channel::Stderr => 2,
        Channel::Pty => 3,
    });
    framed.extend_from_slice(&data);
    Message::Binary(framed.freeze())
}

fn event_message(line: &ProcessLine) -> Message {
    Message::Text(serde_json::to_string(line).unwrap_or_default().into())
}

fn close_message(end: End) -> Message {
    Message::Close(Some(CloseFrame { code: end.code, reason: end.reason.into() }))
}

/// Passes the client's messages to the process. `None` when the client went away.
async fn take_input(mut stream: SplitStream<WebSocket>, mut input: ProcessInput, dialect: Dialect) -> Option<End> {
    loop {
        let message = match stream.next().await? {
            Ok(message) => message,
            Err(_) => return None,
        };
        let passed = match message {
            Message::Binary(data) => input.write(data).await,
            Message::Text(text) => match parse_json::<SocketCommand>(text.as_bytes()) {
                Ok(command) => obey(&mut input, command).await.unwrap_or_else(Err),
                // A brace that somebody types is input, not a command.
                Err(_) if dialect == Dialect::Terminal => input.write(Bytes::copy_from_slice(text.as_bytes())).await,
                Err(error) => return Some(End::new(close::POLICY, error.message)),
            },
            Message::Ping(_) | Message::Pong(_) => Ok(()),
            Message::Close(_) => return None,
        };
        if let Err(error) = passed {
            // A process that has ended takes no input; its output may still be on its way, so only nonsense ends the socket.
            if error.kind == sandbank_control::ErrorKind::Invalid {
                return Some(End::new(close::POLICY, error.message));
            }
        }
    }
}

/// The outer error is the client's, the inner one the process's.
async fn obey(input: &mut ProcessInput, command: SocketCommand) -> Result<sandbank_control::Result<()>, sandbank_control::Error> {
    let refused = |error: ApiError| sandbank_control::Error::invalid(error.text());
    Ok(match command {
        SocketCommand::Resize { cols, rows } => input.resize(convert::pty_size(cols, rows).map_err(refused)?).await,
        SocketCommand::Signal { signal } => input.signal(convert::signal_number(signal).map_err(refused)?, true).await,
        SocketCommand::Eof => input.close().await,
    })
}
