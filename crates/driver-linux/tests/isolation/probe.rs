//! Building the probe, putting it into a sandbox, and reading its findings.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use sandbank_agent_protocol::{Connection, Frame, Reply, Request, StartProcess, Stream, WriteFile};
use sandbank_driver::Driver as _;
use sha2::{Digest as _, Sha256};

use crate::support::{Fixture, Output, SOON, Sandbox};

const SOURCE: &str = include_str!("../probe/probe.rs");
const PATH: &str = "/tmp/probe";

/// What the probe found, by name.
#[derive(Debug)]
pub(crate) struct Findings(BTreeMap<String, (bool, String)>);

impl Findings {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn detail(&self, name: &str) -> &str {
        &self.0.get(name).unwrap_or_else(|| panic!("no finding {name}")).1
    }

    pub(crate) fn all_hold_but(&self, values: &[&str]) {
        let failed: Vec<_> = self.0.iter().filter(|(name, (ok, _))| !ok && !values.contains(&name.as_str())).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    pub(crate) fn none_holds(&self) {
        let found: Vec<_> = self.0.iter().filter(|(_, (ok, _))| *ok).collect();
        assert!(found.is_empty(), "{found:#?}");
    }

    pub(crate) fn include(&self, names: &[&str]) {
        for name in names {
            assert!(self.0.contains_key(*name), "the probe did not look for {name}");
        }
    }
}

/// Builds the probe once for each version of its source; tests in other processes may do so at the same time.
fn build() -> PathBuf {
    let digest: String = Sha256::digest(SOURCE).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let program = dir.join(format!("probe-{digest}"));
    if program.exists() {
        return program;
    }
    let own = tempfile::tempdir_in(&dir).unwrap();
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition=2024", "-Copt-level=1", "-Cdebuginfo=0", "-Cpanic=abort", "-Ctarget-feature=+crt-static"]);
    rustc.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/probe/probe.rs")).arg("--out-dir").arg(own.path());
    let output = rustc.output().expect("rustc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(own.path().join("probe"), &program).unwrap();
    program
}

/// Puts the probe into a sandbox.
pub(crate) async fn install(fixture: &Fixture, sandbox: &Sandbox) {
    let program = std::fs::read(build()).unwrap();
    let write = WriteFile { path: PATH.to_owned(), user: None, mode: Some(0o755), open: Default::default() };
    let mut connection = fixture.driver().open(sandbox.target(), &Request::Write(write)).await.unwrap();
    connection.send_data(Bytes::from(program)).await.unwrap();
    connection.send_end().await.unwrap();
    let reply = tokio::time::timeout(SOON, connection.reply("a stat")).await.unwrap().unwrap();
    assert!(matches!(reply, Reply::Stat(_)), "{reply:?}");
}

/// Runs a part of the probe as root.
pub(crate) async fn probe(fixture: &Fixture, sandbox: &Sandbox, arguments: &[&str]) -> Findings {
    probe_as(fixture, sandbox, "root", arguments).await
}

/// Runs a part of the probe as somebody.
pub(crate) async fn probe_as(fixture: &Fixture, sandbox: &Sandbox, user: &str, arguments: &[&str]) -> Findings {
    let argv = [&[PATH], arguments].concat();
    let output = run_as(fixture, sandbox, user, &argv).await;
    assert_eq!(output.code(), Some(0), "{output:#?}");
    let finding = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        (text("name"), (line["ok"].as_bool().unwrap(), text("detail")))
    };
    Findings(output.stdout.lines().map(finding).collect())
}

fn start(user: &str, argv: &[&str]) -> Request {
    Request::Start(Box::new(StartProcess {
        argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        user: Some(user.to_owned()),
        deadline_ms: Some(15_000),
        kill_on_disconnect: true,
        ..StartProcess::default()
    }))
}

/// Runs a program to its end.
pub(crate) async fn run_as(fixture: &Fixture, sandbox: &Sandbox, user: &str, argv: &[&str]) -> Output {
    let mut connection = fixture.driver().open(sandbox.target(), &start(user, argv)).await.unwrap();
    let mut output = Output::default();
    loop {
        match next(&mut connection).await {
            Frame::Output(Stream::Stdout, bytes) => output.stdout.push_str(&String::from_utf8_lossy(&bytes)),
            Frame::Output(_, bytes) => output.stderr.push_str(&String::from_utf8_lossy(&bytes)),
            Frame::Message(body) => match Frame::parse::<Reply>(&body).unwrap() {
                Reply::Exited(exit) => {
                    output.exit = Some(exit);
                    return output;
                }
                Reply::Error(error) => panic!("{argv:?}: {error}"),
                _ => {}
            },
            _ => {}
        }
    }
}

/// Lets the probe offer itself to be found, for as long as the connection is kept.
pub(crate) async fn serve(fixture: &Fixture, sandbox: &Sandbox) -> Connection {
    let mut connection = fixture.driver().open(sandbox.target(), &start("root", &[PATH, "serve"])).await.unwrap();
    loop {
        match next(&mut connection).await {
            Frame::Output(Stream::Stdout, bytes) if bytes.starts_with(b"ready") => return connection,
            Frame::Message(body) => match Frame::parse::<Reply>(&body).unwrap() {
                Reply::Started { .. } => {}
                other => panic!("instead of serving: {other:?}"),
            },
            other => panic!("instead of serving: {other:?}"),
        }
    }
}

async fn next(connection: &mut Connection) -> Frame {
    let frame = tokio::time::timeout(SOON, connection.next()).await.expect("the agent answers in time");
    frame.unwrap().expect("the agent goes on")
}
