//! The Linux driver: sandboxes from namespaces and cgroups, made by a launcher process, run by an agent.

mod caps;
pub mod doctor;
pub mod image;
mod seccomp;
