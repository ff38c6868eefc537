//! `pool` and `template`: what sandboxes are made from.

use clap::{Args, Subcommand};

use super::{LeaseArgs, Named, NetworkArgs, ProcessArgs, ResourceArgs};

/// `pool …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// Make a pool that keeps sandboxes ready
    #[command(after_help = "Examples:\n  sandbank pool create web --image host --replicas 8\n  \
        sandbank pool create jobs --template trainer --replicas 2 --max 16 --timeout 1h")]
    Create(Box<PoolCreate>),
    /// List pools
    List,
    /// Show a pool
    Show(Named),
    /// Change how many sandboxes a pool keeps
    Scale(PoolScale),
    /// Take a template's newest version into a pool
    Sync(Named),
    /// Delete a pool: its ready sandboxes go, claimed ones live until they are given back
    Delete(Named),
}

/// Options of `pool create`.
#[derive(Debug, Args)]
pub(crate) struct PoolCreate {
    /// Name: lower-case letters, digits and '-'
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Template that its sandboxes are made from
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "image", required_unless_present = "image")]
    pub(crate) template: Option<String>,
    /// Image that its sandboxes are made from
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Sandboxes to keep ready
    #[arg(long, value_name = "N")]
    pub(crate) replicas: u32,
    /// Least that a change of scale may set
    #[arg(long, value_name = "N")]
    pub(crate) min: Option<u32>,
    /// Most sandboxes, claimed ones included
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<u32>,
    /// Count claimed sandboxes in --replicas too, as AgentBox does
    #[arg(long)]
    pub(crate) total: bool,
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Options of `pool scale`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct PoolScale {
    /// Name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Sandboxes to keep ready
    #[arg(value_name = "REPLICAS", group = "change")]
    pub(crate) replicas: Option<u32>,
    /// Least
    #[arg(long, value_name = "N", group = "change")]
    pub(crate) min: Option<u32>,
    /// Most
    #[arg(long, value_name = "N", group = "change")]
    pub(crate) max: Option<u32>,
}

/// `template …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Template {
    /// Make a template
    Create(Box<TemplateCreate>),
    /// List templates
    List,
    /// Show a template
    Show(Named),
    /// Delete a template; pools made from it keep their copy
    Delete(Named),
}

/// Options of `template create`.
#[derive(Debug, Args)]
pub(crate) struct TemplateCreate {
    /// Name: lower-case letters, digits and '-'
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Image
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: String,
    /// Version x.y.z
    #[arg(long, value_name = "VERSION")]
    pub(crate) version: Option<String>,
    /// For people
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Write a newer version of a template that exists
    #[arg(long)]
    pub(crate) update: bool,
    /// Port that programs in it serve on; one with a name is shown as an endpoint; may be repeated
    #[arg(long = "port", value_name = "[NAME=]PORT")]
    pub(crate) ports: Vec<String>,
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Program started once in each sandbox
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}
