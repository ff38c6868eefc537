//! The Linux driver: sandboxes from namespaces and cgroups, made by a launcher process, run by an agent.

pub mod caps;
mod cgroup;
mod channel;
pub mod doctor;
mod driver;
pub mod floor;
pub mod image;
mod launch;
mod launcher;
mod manifest;
mod network;
mod ranges;
mod remover;
pub mod seccomp;
mod skeleton;
mod sys;

pub use driver::{LinuxConfig, LinuxDriver};
pub use launcher::launcher_main;
