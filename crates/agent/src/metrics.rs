//! Counters of the sandbox as seen from inside. What the cgroup knows better (CPU, memory, limits) the host fills in.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use sandbank_agent_protocol::Metrics;

/// `/proc/self/smaps_rollup` is a few hundred bytes.
const ROLLUP_BYTES_MAX: u64 = 8192;
/// Links of a directory with no directories in it.
const BARE_DIRECTORY_LINKS: u64 = 2;

/// What the agent can count itself.
pub(crate) fn gather() -> Metrics {
    Metrics { pids: threads(), agent_bytes: own_bytes(), ..Metrics::default() }
}

/// Threads of all processes: each is a directory in its process's `task`.
fn threads() -> u32 {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let processes = entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit());
    let threads = processes.map(|entry| {
        let links = fs::metadata(entry.path().join("task")).map_or(0, |metadata| metadata.nlink());
        links.saturating_sub(BARE_DIRECTORY_LINKS)
    });
    u32::try_from(threads.sum::<u64>()).unwrap_or(u32::MAX)
}

fn own_bytes() -> u64 {
    let mut text = String::new();
    let read = File::open("/proc/self/smaps_rollup").and_then(|file| file.take(ROLLUP_BYTES_MAX).read_to_string(&mut text));
    if read.is_err() {
        return 0;
    }
    anonymous_bytes(&text)
}

/// What is not backed by the program's file: those pages all agents of a host share.
fn anonymous_bytes(rollup: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()).and_then(|value| value.parse::<u64>().ok());
    kilobytes.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_own_pages_are_not_counted() {
        let rollup =
            "00400000-7ffd ---p 0 00:00 0 [rollup]\nRss: 900 kB\nPrivate_Dirty: 92 kB\nAnonymous:           100 kB\nSwap: 0 kB\n";
        assert_eq!(anonymous_bytes(rollup), 100 * 1024);
        assert_eq!(anonymous_bytes("garbage\nAnonymous: many kB\n"), 0);
    }

    #[test]
    fn this_process_counts_itself() {
        let metrics = gather();
        assert!(metrics.pids >= 1);
        assert!(metrics.agent_bytes > 0);
    }
}
