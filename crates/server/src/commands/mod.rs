//! What the commands do.

mod build;
mod catalogue;
mod cp;
mod doctor;
mod env;
mod events;
mod images;
mod keys;
mod network;
mod pools;
mod ports;
mod pull;
mod registries;
mod run;
mod sandboxes;
mod snapshots;

pub(crate) use env::quoted;

use serde_json::{Map, Value, json};

use crate::cli::{Cli, Command, LeaseArgs, NetworkArgs, OnExpiry, ProcessArgs, ResourceArgs};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::serve;

/// Runs a command to its end; gives the exit code.
pub(crate) fn run(cli: Cli) -> Result<u8> {
    let global = cli.global;
    match cli.command {
        Command::Serve(options) => serve::run(&global, options, None),
        Command::Up(options) => {
            let after = serve::UpOptions { replicas: options.replicas, demo: options.demo };
            serve::run(&global, options.serve, Some(after))
        }
        Command::Doctor => doctor::run(&global),
        command => client_command(&global, command),
    }
}

fn client_command(global: &crate::cli::Global, command: Command) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(async {
        let json = global.json;
        let find = || Client::find(global);
        match command {
            Command::Run(options) => return run::run(&find().map_err(Failure::into_infrastructure)?, options).await,
            Command::Exec(options) => return run::exec(&find().map_err(Failure::into_infrastructure)?, options).await,
            Command::Env(options) => env::run(global, &options, json),
            Command::Claim(options) => sandboxes::claim(&find()?, options, json).await,
            Command::Cp(options) => cp::run(&find()?, &options, json).await,
            Command::Ps(options) => sandboxes::ps(&find()?, &options, json).await,
            Command::Logs(options) => events::logs(&find()?, &options, json).await,
            Command::Pause(ids) => sandboxes::each(&find()?, &ids.ids, sandboxes::Act::Pause, json).await,
            Command::Resume(ids) => sandboxes::each(&find()?, &ids.ids, sandboxes::Act::Resume, json).await,
            Command::Rm(ids) => sandboxes::each(&find()?, &ids.ids, sandboxes::Act::Release, json).await,
            Command::Renew(options) => sandboxes::renew(&find()?, &options, json).await,
            Command::Commit(options) => sandboxes::commit(&find()?, &options, json).await,
            Command::Fork(options) => snapshots::fork(&find()?, &options, json).await,
            Command::Snapshot(command) => snapshots::snapshot(&find()?, command, json).await,
            Command::Build(options) => build::run(&find()?, &options, json).await,
            Command::Port(command) => ports::port(&find()?, command, json).await,
            Command::Events(options) => events::events(&find()?, &options, json).await,
            Command::Stats(one) => sandboxes::stats(&find()?, &one.id, json).await,
            Command::Network(command) => network::run(&find()?, command, json).await,
            Command::Pool(command) => pools::run(&find()?, command, json).await,
            Command::Template(command) => catalogue::template(&find()?, command, json).await,
            Command::Registry(command) => registries::run(&find()?, command, json).await,
            Command::Image(command) => images::image(&find()?, command, json).await,
            Command::Key(command) => keys::run(&find()?, command, json).await,
            Command::Serve(_) | Command::Up(_) | Command::Doctor => Ok(()),
        }
        .map(|()| 0)
    });
    // A read of standard input may be pending for ever on its thread: it must not hold us up.
    runtime.shutdown_background();
    outcome
}

/// `NAME=VALUE` pairs as a JSON object.
pub(crate) fn pairs(what: &str, given: &[String]) -> Result<Map<String, Value>> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), Value::from(value))),
        _ => Err(Failure::usage(format!("{what} {text:?} has no name or no '=': write NAME=VALUE"))),
    };
    given.iter().map(pair).collect()
}

/// Adds `value` under `name` where there is one.
fn put<T: serde::Serialize>(body: &mut Value, name: &str, value: Option<T>) {
    if let Some(value) = value {
        body[name] = json!(value);
    }
}

/// Adds what a lease was asked for, in the words of `POST /v1/sandboxes`.
fn put_lease(body: &mut Value, lease: &LeaseArgs) {
    put(body, "timeout", lease.timeout.as_ref());
    put(body, "idleTimeout", lease.idle_timeout.as_ref());
    put(body, "onExpiry", lease.on_expiry.map(on_expiry));
}

fn on_expiry(action: OnExpiry) -> &'static str {
    match action {
        OnExpiry::Kill => "kill",
        OnExpiry::Pause => "pause",
        OnExpiry::Keep => "keep",
    }
}

/// Adds what a sandbox may reach, where options say it.
fn put_network(body: &mut Value, network: &NetworkArgs) {
    put(body, "network", network::policy(network));
}

/// Adds resources.
fn put_resources(body: &mut Value, resources: &ResourceArgs) {
    put(body, "cpu", resources.cpu.as_ref());
    put(body, "memory", resources.memory.as_ref());
    put(body, "disk", resources.disk.as_ref());
    put(body, "pids", resources.pids);
}

/// Adds environment, user and working directory.
fn put_process(body: &mut Value, process: &ProcessArgs) -> Result<()> {
    let env = pairs("the environment variable", &process.env)?;
    put(body, "env", (!env.is_empty()).then_some(env));
    put(body, "user", process.user.as_ref());
    put(body, "workdir", process.workdir.as_ref());
    Ok(())
}
