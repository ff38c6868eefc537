//! The Linux driver: sandboxes from namespaces and cgroups, made by a launcher process, run by an agent.

pub mod caps;
pub mod doctor;
pub mod image;
pub mod seccomp;
