//! The one binary: reads configuration, wires the adapters, runs the command line.

mod cli;
mod client;
mod commands;
mod config;
mod data_dir;
mod failure;
mod output;
mod progress;
mod serve;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // First of all: the launcher clones processes, and must not have made a thread or opened a file when it begins.
    if std::env::args_os().nth(1).is_some_and(|word| word == "launcher") {
        sandbank_driver_linux::launcher_main();
    }
    match commands::run(cli::Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.code())
        }
    }
}
