//! Process 1 of every Linux sandbox.
//!
//! One thread, no unsafe code, no name service. It listens on a Unix socket; each connection carries one operation
//! (see `sandbank-agent-protocol`). Processes belong to the agent and outlive the connection that started them.

mod credentials;
mod dial;
mod errors;
mod files;
mod host;
mod metrics;
mod process;
mod ready;
mod server;
mod startup;
mod terminal;
mod users;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == terminal::STUB_ARGUMENT) {
        return terminal::run_stub(&arguments[1..]);
    }
    match startup::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbank-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
