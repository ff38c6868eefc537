//! Processes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sandbank_agent_protocol::{AttachProcess, ExitStatus, ProcessInfo, ProcessSelector, PtySize, SendSignal};
use sandbank_control::{Exec, ExecOutput};
use sandbank_http::{TextPiece, format_time};
use sandbank_model::Timestamp;

use super::{argv, environment, optional_text, seconds};
use crate::errors::{ApiError, ApiResult};
use crate::wire;

const EXEC_SECONDS_DEFAULT: u32 = 30;
const EXEC_SECONDS_MAX: u32 = 300;
const STREAM_SECONDS_MAX: u32 = 31_536_000;
const COMMAND_MAX: usize = 256 * 1024;

fn command_argv(command: wire::CommandWire) -> ApiResult<Vec<String>> {
    match command {
        wire::CommandWire::Shell(line) if line.trim().is_empty() => Err(ApiError::bad_request("command is empty")),
        wire::CommandWire::Shell(line) => {
            let line = super::text("command", line, COMMAND_MAX)?;
            Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), line])
        }
        wire::CommandWire::Argv(list) => argv("command", list),
    }
}

/// A collected exec.
pub(crate) fn exec_model(request: wire::ExecRequest) -> ApiResult<Exec> {
    let wire::ExecRequest { command, timeout_seconds, env, cwd, user } = request;
    Ok(Exec {
        argv: command_argv(command)?,
        env: environment("env", env)?,
        cwd: optional_text("cwd", cwd, 4096)?,
        user: optional_text("user", user, 64)?,
        timeout: Some(seconds("timeoutSeconds", timeout_seconds.unwrap_or(EXEC_SECONDS_DEFAULT), EXEC_SECONDS_MAX)?),
        kill_on_disconnect: true,
        ..Exec::default()
    })
}

/// A streamed exec, and what it reads.
pub(crate) fn exec_stream_model(request: wire::ExecStreamRequest) -> ApiResult<(Exec, Option<String>)> {
    let wire::ExecStreamRequest { command, env, cwd, user, timeout_seconds, tag, stdin } = request;
    let exec = Exec {
        argv: command_argv(command)?,
        env: environment("env", env)?,
        cwd: optional_text("cwd", cwd, 4096)?,
        user: optional_text("user", user, 64)?,
        tag: optional_text("tag", tag, 255)?,
        timeout: timeout_seconds.map(|value| seconds("timeoutSeconds", value, STREAM_SECONDS_MAX)).transpose()?,
        stdin: stdin.is_some(),
        kill_on_disconnect: true,
        ..Exec::default()
    };
    Ok((exec, stdin))
}

/// An exec over a socket.
pub(crate) fn exec_socket_model(start: wire::ExecSocketStart) -> ApiResult<Exec> {
    let wire::ExecSocketStart { command, env, cwd, user, tty, stdin, timeout_seconds, tag, detach } = start;
    Ok(Exec {
        argv: command_argv(command)?,
        env: environment("env", env)?,
        cwd: optional_text("cwd", cwd, 4096)?,
        user: optional_text("user", user, 64)?,
        tag: optional_text("tag", tag, 255)?,
        timeout: timeout_seconds.map(|value| seconds("timeoutSeconds", value, STREAM_SECONDS_MAX)).transpose()?,
        stdin: stdin.unwrap_or(false),
        pty: tty.map(|wire::TtySize { cols, rows }| pty_size(cols, rows)).transpose()?,
        kill_on_disconnect: !detach.unwrap_or(false),
    })
}

/// A terminal's shell. Without one given, the user's own is asked for inside, where it is known.
pub(crate) fn terminal_model(query: &wire::TerminalQuery) -> ApiResult<Exec> {
    let size = pty_size(query.cols.unwrap_or(80), query.rows.unwrap_or(24))?;
    let argv = match optional_text("query parameter shell", query.shell.clone(), 4096)? {
        Some(shell) => vec![shell, "-l".to_owned()],
        None => ["/bin/sh", "-c", "exec \"${SHELL:-/bin/sh}\" -l"].map(str::to_owned).to_vec(),
    };
    let env = [("TERM".to_owned(), "xterm-256color".to_owned())].into();
    Ok(Exec { argv, env, pty: Some(size), stdin: true, kill_on_disconnect: true, ..Exec::default() })
}

/// A terminal's size.
pub(crate) fn pty_size(cols: u16, rows: u16) -> ApiResult<PtySize> {
    if cols == 0 || rows == 0 {
        return Err(ApiError::bad_request(format!(
            "a terminal of {cols} columns and {rows} rows has no room: both are at least 1"
        )));
    }
    Ok(PtySize { cols, rows })
}

/// The result of a collected exec.
pub(crate) fn exec_wire(output: &ExecOutput) -> wire::ExecResult {
    let ExecOutput { status, stdout, stderr, truncated } = output;
    wire::ExecResult {
        exit_code: status.shell_code(),
        stdout: String::from_utf8_lossy(stdout).into_owned(),
        stderr: String::from_utf8_lossy(stderr).into_owned(),
        truncated: *truncated,
        timed_out: status.timed_out,
    }
}

/// The last line of a process that ended.
pub(crate) fn exited_line(status: ExitStatus) -> wire::ProcessLine {
    let ExitStatus { code: _, signal, timed_out } = status;
    wire::ProcessLine::Exited { exit_code: status.shell_code(), signal, timed_out }
}

/// A line of output.
pub(crate) fn output_line(stderr: bool, piece: TextPiece) -> wire::ProcessLine {
    let (data, encoding) = match piece {
        TextPiece::Text(text) => (text, None),
        TextPiece::Binary(bytes) => (encode(&bytes), Some("base64")),
    };
    if stderr { wire::ProcessLine::Stderr { data, encoding } } else { wire::ProcessLine::Stdout { data, encoding } }
}

fn encode(bytes: &Bytes) -> String {
    STANDARD.encode(bytes)
}

/// A process in a list.
pub(crate) fn process_wire(info: ProcessInfo) -> wire::ProcessItem {
    // The environment may hold secrets of whoever started the process.
    let ProcessInfo { pid, tag, argv, env: _, cwd, user, pty, started_at_ms, exit, stdout_bytes, stderr_bytes } = info;
    wire::ProcessItem {
        pid,
        tag,
        command: argv,
        cwd,
        user,
        tty: pty,
        started_at: format_time(Timestamp::from_millis(started_at_ms)),
        running: exit.is_none(),
        exit_code: exit.map(|status| status.shell_code()),
        stdout_bytes,
        stderr_bytes,
    }
}

/// A pid in a path.
pub(crate) fn pid(text: &str) -> ApiResult<u32> {
    text.parse().ok().filter(|pid| *pid > 0).ok_or_else(|| ApiError::not_found("no such process: a pid is a number above 0"))
}

/// From where to stream.
pub(crate) fn attach_model(pid: u32, query: &wire::AttachQuery) -> AttachProcess {
    let wire::AttachQuery { stdout_offset, stderr_offset, follow } = *query;
    AttachProcess {
        process: ProcessSelector::Pid(pid),
        stdout_offset: Some(stdout_offset.unwrap_or(0)),
        stderr_offset: Some(stderr_offset.unwrap_or(0)),
        no_follow: !follow.unwrap_or(true),
    }
}

/// A signal to send.
pub(crate) fn signal_model(pid: u32, request: wire::SignalRequest) -> ApiResult<SendSignal> {
    let wire::SignalRequest { signal, group } = request;
    Ok(SendSignal { process: ProcessSelector::Pid(pid), signal: signal_number(signal)?, group: group.unwrap_or(true) })
}

const SIGNALS: [(&str, i32); 15] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("WINCH", 28),
];

/// A signal's number on Linux.
pub(crate) fn signal_number(signal: wire::SignalWire) -> ApiResult<i32> {
    match signal {
        wire::SignalWire::Number(number) if (1..=64).contains(&number) => Ok(number),
        wire::SignalWire::Number(number) => {
            Err(ApiError::bad_request(format!("signal is {number}: it must lie between 1 and 64")))
        }
        wire::SignalWire::Name(name) => {
            let upper = name.to_ascii_uppercase();
            let short = upper.strip_prefix("SIG").unwrap_or(&upper);
            let found = SIGNALS.iter().find(|(known, _)| *known == short).map(|(_, number)| *number);
            found.ok_or_else(|| {
                ApiError::bad_request(format!(
                    "signal {:?} is not known: use a number or a name such as SIGTERM",
                    name.chars().take(40).collect::<String>()
                ))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn exec(body: serde_json::Value) -> ApiResult<Exec> {
        exec_model(serde_json::from_value(body).unwrap())
    }

    #[test]
    fn a_text_runs_in_a_shell_and_a_list_as_it_is() {
        assert_eq!(exec(json!({"command": "echo hi"})).unwrap().argv, ["/bin/sh", "-c", "echo hi"]);
        assert_eq!(exec(json!({"command": ["echo", "hi"]})).unwrap().argv, ["echo", "hi"]);
        for bad in [json!({"command": ""}), json!({"command": []}), json!({"command": [""]}), json!({"command": "a\0b"})] {
            assert!(exec(bad).is_err());
        }
    }

    #[test]
    fn exec_timeouts_lie_between_1_and_300_seconds() {
        assert_eq!(exec(json!({"command": "x"})).unwrap().timeout.unwrap().as_secs(), 30);
        for bad in [0, 301] {
            assert!(exec(json!({"command": "x", "timeoutSeconds": bad})).is_err());
        }
    }

    #[test]
    fn signals_are_known_by_number_and_name() {
        let name = |name: &str| signal_number(wire::SignalWire::Name(name.to_owned())).ok();
        assert_eq!((name("SIGTERM"), name("term"), name("KILL"), name("NOPE")), (Some(15), Some(15), Some(9), None));
        assert!(signal_number(wire::SignalWire::Number(65)).is_err());
        assert!(signal_number(wire::SignalWire::Number(0)).is_err());
    }
}
