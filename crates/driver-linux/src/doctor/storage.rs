//! The file system below the data directory.

use rustix::fs::statvfs;

use super::trial::{Scratch, file_system_of, id_mapped_mount, overlay};
use super::{Check, Machine};

/// Below this, a few sandboxes that write fill the disk.
const FREE_BYTES_WANTED: u64 = 10 << 30;
/// A sandbox of the host image takes about twenty; an imported image tens of thousands.
const FREE_INODES_WANTED: u64 = 500_000;

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    let kind = file_system_of(&machine.dir).unwrap_or_else(|| "unknown".to_owned());
    let shown = machine.dir.display();
    let mut checks = match Scratch::new(machine) {
        Ok(scratch) => vec![overlay_check(machine, &scratch, &kind), id_mapped_check(machine, &scratch, &kind)],
        Err(error) => {
            let found = format!("nothing can be written to {shown}: {error}");
            let advice = "choose another directory with --data-dir, or give this one to the user that sandbank runs as";
            vec![Check::missing("overlay file system", &*found, advice), Check::missing("id-mapped mounts", &*found, advice)]
        }
    };
    checks.push(space(machine));
    checks.push(inodes(machine));
    checks.push(Check::ok(
        "disk limit",
        "watched by the server: a sandbox that writes past its limit is reported within seconds; single files are cut at it",
    ));
    checks
}

fn overlay_check(machine: &Machine, scratch: &Scratch, kind: &str) -> Check {
    let name = "overlay file system";
    match overlay(machine, scratch) {
        Ok(()) => Check::ok(name, format!("works on {kind} at {}", machine.dir.display())),
        Err(error) => Check::missing(
            name,
            format!("cannot be mounted on {kind} at {}: {error}", machine.dir.display()),
            "load it with `modprobe overlay`, and keep the data directory on ext4, xfs or btrfs: overlayfs cannot write to \
             itself, NFS or FAT",
        ),
    }
}

fn id_mapped_check(machine: &Machine, scratch: &Scratch, kind: &str) -> Check {
    let name = "id-mapped mounts";
    if !machine.is_root {
        return Check::ok(name, "not needed: without root all files of sandboxes belong to this user");
    }
    match id_mapped_mount(scratch) {
        Ok(()) => Check::ok(name, format!("work on {kind}")),
        Err(error) => Check::missing(
            name,
            format!("do not work on {kind} at {}: {error}", machine.dir.display()),
            "keep the data directory on a file system that has them: ext4, xfs or btrfs, or tmpfs from Linux 6.3 on",
        ),
    }
}

fn space(machine: &Machine) -> Check {
    let name = "disk space";
    let Ok(found) = statvfs(&machine.dir) else {
        return Check::degraded(name, "cannot be read", "make sure that there is enough");
    };
    let bytes = found.f_bavail.saturating_mul(found.f_frsize);
    let text = format!("{} MiB free at {}", bytes >> 20, machine.dir.display());
    if bytes >= FREE_BYTES_WANTED {
        return Check::ok(name, text);
    }
    Check::degraded(name, text, "free some, or choose a larger disk with --data-dir: what sandboxes write is kept there")
}

fn inodes(machine: &Machine) -> Check {
    let name = "inodes";
    match statvfs(&machine.dir) {
        // File systems that make them as needed (btrfs) say 0 of 0.
        Ok(found) if found.f_files == 0 => Check::ok(name, "made as needed"),
        Ok(found) if found.f_favail >= FREE_INODES_WANTED => Check::ok(name, format!("{} free", found.f_favail)),
        Ok(found) => Check::degraded(
            name,
            format!("{} free", found.f_favail),
            "an imported image takes tens of thousands: remove unused images, or choose another disk with --data-dir",
        ),
        Err(_) => Check::degraded(name, "cannot be read", "make sure that there are enough"),
    }
}
