//! Kills a terminal's whole session: a shell with job control gives each of its jobs a group of its own.

use std::fs::{self, File};
use std::io::Read;

use rustix::process::{Pid, Signal};

/// Processes may fork while they are looked for.
const ROUNDS_MAX: usize = 8;
/// `/proc/PID/stat` is shorter.
const STAT_BYTES_MAX: u64 = 4096;

/// Kills every process of the session except its leader, which the caller kills by its group.
pub(super) fn kill(leader: Pid) {
    for _ in 0..ROUNDS_MAX {
        let mut killed = false;
        let Ok(entries) = fs::read_dir("/proc") else { return };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Pid::from_raw);
        for pid in pids.filter(|pid| *pid != leader && is_member(*pid, leader)) {
            killed |= rustix::process::kill_process(pid, Signal::KILL).is_ok();
        }
        if !killed {
            return;
        }
    }
}

fn is_member(pid: Pid, leader: Pid) -> bool {
    let mut stat = String::new();
    let opened = File::open(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let read = opened.and_then(|file| file.take(STAT_BYTES_MAX).read_to_string(&mut stat));
    read.is_ok() && parse(&stat) == Some((leader.as_raw_nonzero().get(), true))
}

/// The session, and whether the process is alive. A command's name may contain anything, but no later field a parenthesis.
fn parse(stat: &str) -> Option<(i32, bool)> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let alive = !matches!(fields.next()?, "Z" | "X");
    Some((fields.nth(2)?.parse().ok()?, alive))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_session_is_found_behind_any_name() {
        assert_eq!(parse("12 (a) b) ( 9) S 1 12 77 34816 12 4194304"), Some((77, true)));
        assert_eq!(parse("12 (x) Z 1 12 77 0 -1"), Some((77, false)));
        assert_eq!(parse("12 (x) S 1"), None);
        assert_eq!(parse(""), None);
    }
}
