//! The command line's grammar. What the commands do is in `commands`.

mod build;
mod catalogue;
mod image;
mod key;
mod network;
mod port;
mod registry;
mod sandbox;
mod snapshot;

pub(crate) use build::*;
pub(crate) use catalogue::*;
pub(crate) use image::*;
pub(crate) use key::*;
pub(crate) use network::*;
pub(crate) use port::*;
pub(crate) use registry::*;
pub(crate) use sandbox::*;
pub(crate) use snapshot::*;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "\
Start here:
  sandbank up                                   start a server with a pool of ready sandboxes
  sandbank run base -- sh -c 'echo $((6 * 7))'  run a program in one of them (in another terminal)

Step by step:
  ID=$(sandbank claim base)                     take a sandbox
  sandbank cp app.py $ID:/home/user/            put a file in
  sandbank exec $ID -- python3 app.py           run it
  sandbank exec -it $ID -- bash                 look around
  sandbank rm $ID                               give it back

Client commands find the server by SANDBANK_URL and SANDBANK_KEY, else by the data directory.
Exit codes: 0 success, 1 error, 2 wrong usage; run and exec end with the program's own code, or 125 when the sandbox failed.";

/// Pools of ready Linux sandboxes, handed out in under a millisecond.
#[derive(Debug, Parser)]
#[command(name = "sandbank", version, after_help = EXAMPLES, disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Server to talk to, such as http://127.0.0.1:7070
    #[arg(long, global = true, env = "SANDBANK_URL", value_name = "URL", help_heading = "Connection")]
    pub(crate) url: Option<String>,
    /// API key to use
    #[arg(long, global = true, env = "SANDBANK_KEY", hide_env_values = true, value_name = "KEY", help_heading = "Connection")]
    pub(crate) key: Option<String>,
    /// Data directory of the server on this machine [default: /var/lib/sandbank as root, else $XDG_DATA_HOME/sandbank]
    #[arg(long, global = true, env = "SANDBANK_DATA_DIR", value_name = "DIR", help_heading = "Connection")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Configuration file (TOML)
    #[arg(long, global = true, env = "SANDBANK_CONFIG", value_name = "FILE", help_heading = "Connection")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON instead of text: one document, or one a line where output goes on
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server
    Serve(Serve),
    /// Run the server with defaults and a pool named `base` that is ready to claim from
    Up(Up),
    /// Print the export lines that point a shell, or an SDK, at the server
    Env(Env),
    /// Check what this machine can do: kernel, cgroups, namespaces, limits
    Doctor,
    /// Claim a sandbox, run a program in it, end with its exit code, and give the sandbox back
    Run(Run),
    /// Claim a sandbox from a pool and print its id
    Claim(ClaimArgs),
    /// Run a program in a sandbox
    Exec(Exec),
    /// Copy files and directories into or out of a sandbox
    Cp(Cp),
    /// List sandboxes
    Ps(Ps),
    /// Show what a sandbox's own command wrote
    Logs(Logs),
    /// Freeze sandboxes: they keep their memory and use no CPU
    Pause(Ids),
    /// Let paused sandboxes go on
    Resume(Ids),
    /// Move the end of sandboxes' leases
    Renew(Renew),
    /// Give sandboxes back; they are destroyed
    Rm(Ids),
    /// Make an image of what a sandbox changed
    Commit(Commit),
    /// Make sandboxes of what another one's file system is now, and print their ids
    Fork(Fork),
    /// Manage snapshots: what sandboxes' file systems were
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Build an image from a Dockerfile
    Build(Build),
    /// Reach the ports of a sandbox: addresses for browsers, forwarding for everything else
    #[command(subcommand)]
    Port(Port),
    /// Show what happened
    Events(Events),
    /// Show what a sandbox uses
    Stats(One),
    /// Show and change what a sandbox may reach
    #[command(subcommand)]
    Network(Network),
    /// Manage pools of ready sandboxes
    #[command(subcommand)]
    Pool(Pool),
    /// Manage templates: what the sandboxes of a pool are made from
    #[command(subcommand)]
    Template(Template),
    /// Manage images: root file systems
    #[command(subcommand)]
    Image(Image),
    /// Manage the credentials that image registries are shown
    #[command(subcommand)]
    Registry(Registry),
    /// Manage API keys
    #[command(subcommand)]
    Key(Key),
}

/// Options of `serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Serve {
    /// Address to listen on, IP:PORT; port 0 takes a free one [default: 127.0.0.1:7070]
    #[arg(long, env = "SANDBANK_LISTEN", value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// The installation's admin key; without one a first start makes it and keeps it in the data directory. There is no option
    /// for it, because options are seen by every user of the machine.
    #[arg(skip = std::env::var("SANDBANK_ADMIN_KEY").ok().filter(|key| !key.is_empty()))]
    pub(crate) admin_key: Option<String>,
}

/// Options of `up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) serve: Serve,
    /// Sandboxes that the pool `base` keeps ready
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) replicas: u32,
    /// Show a claimed sandbox running a program first, with the time that each step took
    #[arg(long)]
    pub(crate) demo: bool,
}

/// Options of `env`.
#[derive(Debug, Args)]
pub(crate) struct Env {
    /// Whose variables: the API that your program speaks
    #[arg(value_name = "DIALECT")]
    pub(crate) dialect: String,
}

/// A sandbox by id.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// One or more sandboxes by id.
#[derive(Debug, Args)]
pub(crate) struct Ids {
    /// Sandbox ids
    #[arg(value_name = "ID", required = true, num_args = 1..)]
    pub(crate) ids: Vec<String>,
}

/// What a lease can be asked for.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LeaseArgs {
    /// End the lease after this long, such as 90s, 30m or 1h30m; 0 for never
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
    /// End the lease when nothing was done for this long; 0 for never
    #[arg(long, value_name = "DURATION")]
    pub(crate) idle_timeout: Option<String>,
    /// What happens when the lease ends by itself
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) on_expiry: Option<OnExpiry>,
}

/// What happens when a lease ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnExpiry {
    /// The sandbox is destroyed
    Kill,
    /// The sandbox is paused
    Pause,
    /// The sandbox is kept as it is, frozen
    Keep,
}

/// Resources of a sandbox.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ResourceArgs {
    /// CPU limit: cores (2) or thousandths (500m)
    #[arg(long, value_name = "CPU", help_heading = "Resources")]
    pub(crate) cpu: Option<String>,
    /// Memory limit, such as 512Mi or 2Gi
    #[arg(long, value_name = "SIZE", help_heading = "Resources")]
    pub(crate) memory: Option<String>,
    /// Disk limit, such as 4Gi
    #[arg(long, value_name = "SIZE", help_heading = "Resources")]
    pub(crate) disk: Option<String>,
    /// Most processes and threads
    #[arg(long, value_name = "N", help_heading = "Resources")]
    pub(crate) pids: Option<u32>,
}

/// What programs in a sandbox get.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ProcessArgs {
    /// Environment variable; may be repeated
    #[arg(short = 'e', long = "env", value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// User to run as, by name or number
    #[arg(short = 'u', long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Working directory
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
}

/// How the person's terminal and input are connected.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct StdioArgs {
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub(crate) interactive: bool,
    /// Run on a terminal of its own (needs a terminal here)
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
}

/// An object by name.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_grammar_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_a_pool_or_an_image_and_a_program() {
        let Command::Run(run) = parse("sandbank run base -- sh -c -x").unwrap().command else { panic!("run") };
        assert_eq!((run.pool.as_deref(), run.command), (Some("base"), vec!["sh".to_owned(), "-c".to_owned(), "-x".to_owned()]));
        let Command::Run(run) = parse("sandbank run --image host -it -- bash").unwrap().command else { panic!("run") };
        assert!(run.pool.is_none() && run.stdio.interactive && run.stdio.tty);
        for wrong in ["sandbank run base", "sandbank run -- true", "sandbank run base --image host -- true"] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_pool_needs_a_template_or_an_image() {
        for wrong in
            ["pool create p --replicas 1", "pool create p --image host", "pool create p --image a --template b --replicas 1"]
        {
            assert!(parse(&format!("sandbank {wrong}")).is_err(), "{wrong}");
        }
        assert!(parse("sandbank pool create p --image host --replicas 2 --max 9 --total -e A=b --cpu 500m").is_ok());
        assert!(parse("sandbank pool scale p").is_err());
        assert!(parse("sandbank pool scale p 3").is_ok());
        assert!(parse("sandbank pool scale p --max 3").is_ok());
    }

    #[test]
    fn a_policy_is_given_in_options_or_in_a_file() {
        for right in [
            "network set ID --no-internet --allow packages.example.com:443 --allow 10.0.0.0/8 --deny *:25",
            "network set ID --file policy.json",
            "network set ID",
            "claim base --no-internet",
            "run base --allow packages.example.com -- true",
            "pool create p --image host --replicas 1 --deny *:25",
            "template create t --image host --no-internet",
        ] {
            assert!(parse(&format!("sandbank {right}")).is_ok(), "{right}");
        }
        for wrong in ["network set", "network set ID --file p --no-internet", "network set ID --allow", "network show"] {
            assert_eq!(parse(&format!("sandbank {wrong}")).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_login_says_what_the_secret_is() {
        for wrong in ["ghcr.io", "ghcr.io -u me --token", "-u me"] {
            assert_eq!(parse(&format!("sandbank registry login {wrong}")).unwrap_err().exit_code(), 2, "{wrong}");
        }
        for right in ["ghcr.io -u me", "ghcr.io --username me --password-stdin --global", "ghcr.io --token --password-stdin"] {
            assert!(parse(&format!("sandbank registry login {right}")).is_ok(), "{right}");
        }
    }

    #[test]
    fn global_options_may_stand_behind_the_command() {
        let cli = parse("sandbank ps --json --url http://127.0.0.1:1 --key k --all").unwrap();
        assert!(cli.global.json);
        assert_eq!(cli.global.url.as_deref(), Some("http://127.0.0.1:1"));
    }
}
