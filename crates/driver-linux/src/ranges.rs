//! Ranges of user and group ids: every sandbox has one of its own while it lives.

use std::collections::{BTreeSet, HashMap};

use sandbank_driver::DriverError;
use sandbank_model::SandboxId;

/// Ids in one range, as many as a conventional system uses.
pub(crate) const RANGE_IDS: u32 = 0x1_0000;
/// First id of the first range: above what distributions, systemd and container tools hand out.
const FIRST_ID: u32 = 0x1000_0000;
/// Last id of the last range. Above lie ids that tools mistake for negative numbers.
const LAST_ID: u32 = 0x6FFF_FFFF;
/// How many ranges there are.
pub(crate) const RANGES: u32 = (LAST_ID - FIRST_ID + 1) / RANGE_IDS;

/// The host's id that is 0 inside a sandbox with this range.
pub(crate) const fn range_first_id(range: u32) -> u32 {
    FIRST_ID + range * RANGE_IDS
}

/// Which ranges are in use, and whose they are. The one given back last is given out first: its user namespace is still there.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    returned: Vec<u32>,
    /// All ranges from here on have never been used.
    fresh: u32,
    used: BTreeSet<u32>,
    owners: HashMap<SandboxId, u32>,
}

impl Ranges {
    /// A range that no living sandbox has.
    pub(crate) fn take(&mut self, owner: SandboxId) -> Result<u32, DriverError> {
        let returned = std::iter::from_fn(|| self.returned.pop()).find(|range| !self.used.contains(range));
        let range = match returned {
            Some(range) => range,
            None => self.take_fresh()?,
        };
        self.adopt(owner, range);
        Ok(range)
    }

    fn take_fresh(&mut self) -> Result<u32, DriverError> {
        while self.used.contains(&self.fresh) {
            self.fresh += 1;
        }
        if self.fresh >= RANGES {
            return Err(DriverError::Exhausted {
                what: "user id ranges",
                detail: format!("all {RANGES} are in use; destroy sandboxes that are no longer needed"),
            });
        }
        self.fresh += 1;
        Ok(self.fresh - 1)
    }

    /// Marks one as used by a sandbox that was found alive.
    pub(crate) fn adopt(&mut self, owner: SandboxId, range: u32) {
        self.give_back(owner);
        self.used.insert(range);
        self.owners.insert(owner, range);
    }

    /// Gives back what a sandbox has, if it has one.
    pub(crate) fn give_back(&mut self, owner: SandboxId) {
        if let Some(range) = self.owners.remove(&owner) {
            self.used.remove(&range);
            self.returned.push(range);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sandbank_model::Timestamp;

    fn id(number: u32) -> SandboxId {
        let mut random = [0; 10];
        // Beyond the bits that say which kind of UUID it is.
        random[4..8].copy_from_slice(&number.to_le_bytes());
        SandboxId::new(Timestamp::from_millis(1), random)
    }

    #[test]
    fn a_range_is_never_with_two_sandboxes_and_comes_back_last_in_first_out() {
        let mut ranges = Ranges::default();
        ranges.adopt(id(1), 1);
        assert_eq!(ranges.take(id(10)).unwrap(), 0);
        assert_eq!(ranges.take(id(12)).unwrap(), 2);
        ranges.give_back(id(10));
        ranges.give_back(id(10));
        ranges.give_back(id(1));
        assert_eq!(ranges.take(id(20)).unwrap(), 1);
        assert_eq!(ranges.take(id(21)).unwrap(), 0);
        assert_eq!(ranges.take(id(22)).unwrap(), 3);
    }

    #[test]
    fn when_all_are_used_the_machine_is_out_of_user_id_ranges() {
        let mut ranges = Ranges::default();
        for number in 0..RANGES {
            ranges.take(id(number)).unwrap();
        }
        assert!(matches!(ranges.take(id(RANGES)), Err(DriverError::Exhausted { what: "user id ranges", .. })));
        assert_eq!(range_first_id(RANGES - 1) + (RANGE_IDS - 1), LAST_ID);
    }
}
