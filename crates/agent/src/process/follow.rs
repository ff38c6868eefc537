//! The connections that start a process, stream one, write to one, or list them.

use std::pin::pin;
use std::rc::Rc;

use sandbank_agent_protocol::{
    AttachProcess, Frame, HostMessage, ProcessInfo, ProcessSelector, Reply, StartProcess, write_output,
};

use super::output::Follower;
use super::{Process, spawn};
use crate::errors::{Failure, Outcome};
use crate::host::{self, HangUp, Host, HostReader, HostWriter, next_upload};
use crate::server::Agent;

/// Output sent in one frame.
const CHUNK: usize = 64 * 1024;
/// A listing of processes has to fit one frame: 1 MiB, with room for what JSON adds.
const LISTING_BYTES_MAX: usize = 900 * 1024;

/// Serves a `Start` request.
pub(crate) async fn start(agent: &Rc<Agent>, host: &mut Host, request: StartProcess) -> Result<(), Failure> {
    let kill_on_disconnect = request.kill_on_disconnect;
    let process = spawn::launch(agent, request)?;
    let followers = process.outputs.iter().map(|output| output.follow(0)).collect();
    let started = Reply::Started { pid: process.pid_number() };
    let outcome = converse(host, &process, followers, &started, true).await;
    if kill_on_disconnect {
        process.kill();
    }
    outcome
}

/// Serves an `Attach` request.
pub(crate) async fn attach(agent: &Rc<Agent>, host: &mut Host, request: AttachProcess) -> Result<(), Failure> {
    let process = agent.processes.find(&request.process)?;
    let offsets = [request.stdout_offset, request.stderr_offset];
    let mut followers: Vec<Follower> = Vec::new();
    for (output, offset) in process.outputs.iter().zip(offsets) {
        let mut follower = output.follow(offset.unwrap_or(u64::MAX));
        if request.no_follow {
            follower.stop_at_present();
        }
        followers.push(follower);
    }
    let position = |index: usize| followers.get(index).map_or(0, Follower::position);
    let attached = Reply::Attached {
        pid: process.pid_number(),
        stdout_offset: position(0),
        stderr_offset: position(1),
        pty: process.request.pty.is_some(),
    };
    converse(host, &process, followers, &attached, !request.no_follow).await
}

async fn converse(
    host: &mut Host,
    process: &Rc<Process>,
    followers: Vec<Follower>,
    first: &Reply,
    until_exit: bool,
) -> Result<(), Failure> {
    host.reply(first).await?;
    let hang_up = host.hang_up();
    let input = pin!(take_input(&mut host.reader, process, &hang_up));
    let output = pin!(send_output(&mut host.writer, process, followers, until_exit));
    tokio::select! {
        biased;
        outcome = output => outcome,
        () = input => Err(Failure::HostGone),
    }
}

/// Sends all streams until the process has ended and its output is out.
async fn send_output(
    writer: &mut HostWriter,
    process: &Process,
    followers: Vec<Follower>,
    until_exit: bool,
) -> Result<(), Failure> {
    let mut buffer = Vec::new();
    loop {
        let mut changed = pin!(process.changed.notified());
        changed.as_mut().enable();
        let mut sent = false;
        for follower in &followers {
            buffer.clear();
            if follower.take(CHUNK, &mut buffer) {
                write_output(writer, follower.stream(), &buffer).await?;
                sent = true;
            }
        }
        if sent {
            continue;
        }
        if followers.iter().all(Follower::is_done) {
            match process.exit.get() {
                Some(status) => return writer.reply(&Reply::Exited(status)).await,
                None if !until_exit => return writer.reply(&Reply::StillRunning).await,
                None => {}
            }
        }
        // A quiet process costs no buffer.
        buffer = Vec::new();
        changed.await;
    }
}

/// Takes stdin and messages until the host is gone. A host that only stopped sending still listens.
async fn take_input(reader: &mut HostReader, process: &Process, hang_up: &HangUp) {
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return hang_up.wait().await,
            Err(_) => return,
        };
        let taken = match frame {
            Frame::Data(data) => {
                tokio::select! {
                    biased;
                    // Input that the process no longer takes is dropped, as a shell's pipe would.
                    _ = process.stdin.write(&data) => Ok(()),
                    () = hang_up.wait() => return,
                }
            }
            Frame::End => close(process).await,
            Frame::Message(body) => obey(process, &body).await,
            Frame::Output(..) => return,
        };
        if taken.is_err() {
            return;
        }
    }
}

async fn close(process: &Process) -> Outcome<()> {
    // Closing what is closed is no reason to end the stream.
    let _ = process.close_stdin().await;
    Ok(())
}

async fn obey(process: &Process, body: &[u8]) -> Outcome<()> {
    match host::parse(body)? {
        // These race with the process's end, and their connection has no place for an answer of their own.
        HostMessage::Signal { signal, group } => drop(process.signal(signal, group)),
        HostMessage::Resize(size) => drop(process.resize(size)),
        HostMessage::CloseStdin => close(process).await?,
    }
    Ok(())
}

/// Serves a `WriteStdin` request.
pub(crate) async fn write_stdin(agent: &Agent, host: &mut Host, selector: &ProcessSelector) -> Result<(), Failure> {
    let process = agent.processes.find(selector)?;
    let hang_up = host.hang_up();
    while let Some(data) = next_upload(&mut host.reader).await? {
        tokio::select! {
            biased;
            written = process.stdin.write(&data) => written?,
            () = hang_up.wait() => return Err(Failure::HostGone),
        }
    }
    host.reply(&Reply::Done).await
}

/// Serves a `ListProcesses` request.
pub(crate) async fn list(agent: &Agent, host: &mut Host) -> Result<(), Failure> {
    let mut infos: Vec<ProcessInfo> = agent.processes.all().iter().map(|process| process.info()).collect();
    fit(&mut infos);
    host.reply(&Reply::Processes(infos)).await
}

/// Environments are left out first where the listing would not fit a frame, then the oldest processes.
fn fit(infos: &mut Vec<ProcessInfo>) {
    let size = |infos: &[ProcessInfo]| serde_json::to_vec(infos).map_or(usize::MAX, |json| json.len());
    if size(infos) <= LISTING_BYTES_MAX {
        return;
    }
    for info in infos.iter_mut() {
        info.env.clear();
    }
    while size(infos) > LISTING_BYTES_MAX && !infos.is_empty() {
        let oldest = infos.len().div_ceil(4);
        infos.drain(..oldest);
    }
}
