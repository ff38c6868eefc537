//! What was opened for names in one sandbox: so that another policy, which counts its names otherwise, need not close it.

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;
use sandbank_model::{NameGroup, NamedAddress, Timestamp};

/// Most names that are remembered; what is opened beyond them is closed when the policy changes, and opens again when it is asked for.
const NAMES_MAX: usize = 512;
/// Most addresses of a name: as many as a resolver gives on.
const ADDRESSES_MAX: usize = 64;

type Addresses = HashMap<IpAddr, Timestamp>;

/// Names with their addresses, each with the end of its life.
#[derive(Debug, Default)]
pub(super) struct Opened(Mutex<HashMap<String, Addresses>>);

impl Opened {
    /// Remembers what is open now.
    pub(super) fn note(&self, name: &str, addresses: &[NamedAddress], now: Timestamp) {
        let mut names = self.0.lock();
        if !names.contains_key(name) && names.len() >= NAMES_MAX {
            names.retain(|_, addresses| addresses.values().any(|until| *until > now));
            if names.len() >= NAMES_MAX {
                return;
            }
        }
        let known = names.entry(name.to_owned()).or_default();
        known.retain(|_, until| *until > now);
        for one in addresses {
            if known.len() < ADDRESSES_MAX || known.contains_key(&one.address) {
                known.insert(one.address, now.plus(one.life));
            }
        }
    }

    /// What still lives, in the groups that `groups_of` says each name is in.
    pub(super) fn living(&self, now: Timestamp, groups_of: impl Fn(&str) -> Vec<NameGroup>) -> Vec<NamedAddress> {
        let names = self.0.lock();
        let mut living = Vec::new();
        for (name, addresses) in names.iter() {
            let groups = groups_of(name);
            for (address, until) in addresses.iter().filter(|(_, until)| **until > now) {
                living.extend(groups.iter().map(|group| NamedAddress {
                    group: *group,
                    address: *address,
                    life: until.since(now),
                }));
            }
        }
        living
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(last: u8, seconds: u64) -> NamedAddress {
        NamedAddress { group: NameGroup(0), address: IpAddr::from([203, 0, 113, last]), life: Duration::from_secs(seconds) }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn what_lives_moves_to_the_groups_of_another_policy() {
        let opened = Opened::default();
        opened.note("a.example", &[address(1, 10), address(2, 100)], at(0));
        opened.note("b.example", &[address(3, 100)], at(0));
        opened.note("a.example", &[address(1, 30)], at(5));
        let groups = |name: &str| if name == "a.example" { vec![NameGroup(4), NameGroup(7)] } else { Vec::new() };
        let mut living = opened.living(at(20), groups);
        living.sort_unstable_by_key(|one| (one.group, one.address));
        let seen: Vec<_> = living.iter().map(|one| (one.group.0, one.address.to_string(), one.life.as_secs())).collect();
        let expected = [(4, 1, 15), (4, 2, 80), (7, 1, 15), (7, 2, 80)];
        assert_eq!(seen, expected.map(|(group, last, life)| (group, format!("203.0.113.{last}"), life)));
        assert_eq!(opened.living(at(35), groups).len(), 2);
        assert!(opened.living(at(200), groups).is_empty());
    }

    #[test]
    fn memory_is_bounded_and_dead_names_make_room() {
        let opened = Opened::default();
        for number in 0..2 * NAMES_MAX {
            opened.note(&format!("{number}.example"), &[address(1, 10)], at(0));
        }
        assert_eq!(opened.0.lock().len(), NAMES_MAX);
        opened.note("late.example", &[address(1, 10)], at(60));
        assert_eq!(opened.0.lock().len(), 1);
        let many: Vec<NamedAddress> = (0..=255).map(|last| address(last, 10)).collect();
        opened.note("late.example", &many, at(60));
        assert_eq!(opened.0.lock()["late.example"].len(), ADDRESSES_MAX);
    }
}
