//! Process output as NDJSON. The client pulls; when it goes away, the process stream is dropped.

use std::collections::VecDeque;

use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use sandbank_agent_protocol::Stream as Channel;
use sandbank_control::{ProcessEvent, ProcessEvents, ProcessInput, ProcessStream};
use sandbank_http::{LineSplitter, TextCarry, format_time, ndjson_body, ndjson_line};
use tokio::task::JoinHandle;

use crate::app::App;
use crate::convert::{CONTAINER, exited_line, output_line};
use crate::wire::{LogEntry, ProcessLine};

/// Longest log line; a longer one comes in pieces.
const LOG_LINE_MAX: usize = 64 * 1024;

/// What keeps the process's input: it must live as long as the stream, since dropping it would end the process.
enum Input {
    Held { _input: ProcessInput },
    Feeding(JoinHandle<Option<ProcessInput>>),
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Self::Feeding(task) = self {
            task.abort();
        }
    }
}

/// Writes `text` to the process and closes its input, beside the reading of its output: a process may fill its output before
/// it has read everything.
fn feed(mut input: ProcessInput, text: String) -> Input {
    Input::Feeding(tokio::spawn(async move {
        // A process that ended without reading is no error of the client's.
        let _ = input.write(Bytes::from(text)).await;
        let _ = input.close().await;
        Some(input)
    }))
}

struct Lines {
    events: ProcessEvents,
    _input: Input,
    stdout: TextCarry,
    stderr: TextCarry,
    ready: VecDeque<ProcessLine>,
    ended: bool,
}

impl Lines {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some((ndjson_line(&line), self));
            }
            if self.ended {
                return None;
            }
            match self.events.next().await {
                Ok(Some(event)) => self.take(event),
                Ok(None) => self.end(None),
                Err(error) => self.end(Some(ProcessLine::Error { error: error.message })),
            }
        }
    }

    fn take(&mut self, event: ProcessEvent) {
        match event {
            ProcessEvent::Started { pid, stdout_offset, stderr_offset } => {
                self.ready.push_back(ProcessLine::Started { pid, stdout_offset, stderr_offset });
            }
            ProcessEvent::Output(channel, data) => {
                let stderr = channel == Channel::Stderr;
                let carry = if stderr { &mut self.stderr } else { &mut self.stdout };
                self.ready.extend(carry.push(&data).map(|piece| output_line(stderr, piece)));
            }
            ProcessEvent::Exited(status) => self.end(Some(exited_line(status))),
            ProcessEvent::StillRunning => self.end(Some(ProcessLine::Running {})),
        }
    }

    fn end(&mut self, last: Option<ProcessLine>) {
        self.ready.extend(self.stdout.finish().map(|piece| output_line(false, piece)));
        self.ready.extend(self.stderr.finish().map(|piece| output_line(true, piece)));
        self.ready.extend(last);
        self.ended = true;
    }
}

/// A process as NDJSON, with `stdin` fed to it.
pub(crate) fn process_body(process: ProcessStream, stdin: Option<String>) -> Response {
    let ProcessStream { events, input } = process;
    let input = match stdin {
        Some(text) => feed(input, text),
        None => Input::Held { _input: input },
    };
    let lines = Lines {
        events,
        _input: input,
        stdout: TextCarry::default(),
        stderr: TextCarry::default(),
        ready: VecDeque::new(),
        ended: false,
    };
    ndjson_body(stream::unfold(lines, Lines::next))
}

struct LogLines {
    app: App,
    process: ProcessStream,
    stdout: LineSplitter,
    stderr: LineSplitter,
    ready: VecDeque<String>,
    ended: bool,
}

impl LogLines {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(log) = self.ready.pop_front() {
                let timestamp = Some(format_time(self.app.control.now()));
                return Some((ndjson_line(&LogEntry { timestamp, container: CONTAINER.to_owned(), log }), self));
            }
            if self.ended {
                return None;
            }
            match self.process.events.next().await {
                Ok(Some(ProcessEvent::Output(Channel::Stderr, data))) => self.ready.extend(self.stderr.push(&data)),
                Ok(Some(ProcessEvent::Output(_, data))) => self.ready.extend(self.stdout.push(&data)),
                Ok(Some(ProcessEvent::Started { .. })) => {}
                Ok(Some(ProcessEvent::Exited(_) | ProcessEvent::StillRunning) | None) | Err(_) => {
                    self.ready.extend(self.stdout.finish());
                    self.ready.extend(self.stderr.finish());
                    self.ended = true;
                }
            }
        }
    }
}

/// A command's log as NDJSON.
pub(crate) fn log_body(app: App, process: ProcessStream) -> Response {
    let (stdout, stderr) = (LineSplitter::new(LOG_LINE_MAX), LineSplitter::new(LOG_LINE_MAX));
    let lines = LogLines { app, process, stdout, stderr, ready: VecDeque::new(), ended: false };
    ndjson_body(stream::unfold(lines, LogLines::next))
}
