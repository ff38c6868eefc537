//! Sets of addresses as sorted ranges that do not touch: union, difference, membership.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{AddressRange, Cidr};

type Range = (u128, u128);

/// A set of addresses of both families. Its ranges are sorted, and no two of them touch or overlap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct AddressSet {
    v4: Vec<Range>,
    v6: Vec<Range>,
}

impl AddressSet {
    pub(super) fn of<'a>(cidrs: impl IntoIterator<Item = &'a Cidr>) -> Self {
        let mut set = Self::default();
        for cidr in cidrs {
            let range = (number(cidr.first()), number(cidr.last()));
            if cidr.is_ipv4() { set.v4.push(range) } else { set.v6.push(range) }
        }
        Self { v4: merged(set.v4), v6: merged(set.v6) }
    }

    /// What is in this set and not in `other`.
    pub(super) fn minus(&self, other: &Self) -> Self {
        Self { v4: difference(&self.v4, &other.v4), v6: difference(&self.v6, &other.v6) }
    }

    pub(super) fn union(mut self, other: Self) -> Self {
        self.v4.extend(other.v4);
        self.v6.extend(other.v6);
        Self { v4: merged(self.v4), v6: merged(self.v6) }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let (ranges, at) = match address {
            IpAddr::V4(_) => (&self.v4, number(address)),
            IpAddr::V6(_) => (&self.v6, number(address)),
        };
        let next = ranges.partition_point(|(first, _)| *first <= at);
        next.checked_sub(1).and_then(|found| ranges.get(found)).is_some_and(|(_, last)| at <= *last)
    }

    pub(super) fn ranges(&self) -> Vec<AddressRange> {
        // Every number of `v4` came from an IPv4 address, and differences stay between such.
        let four = |number: u128| IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)));
        let six = |number: u128| IpAddr::V6(Ipv6Addr::from(number));
        let v4 = self.v4.iter().map(|(first, last)| AddressRange { first: four(*first), last: four(*last) });
        let v6 = self.v6.iter().map(|(first, last)| AddressRange { first: six(*first), last: six(*last) });
        v4.chain(v6).collect()
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The same numbers in ranges that are sorted and do not touch.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

/// What of `ranges` is not in `holes`; both are sorted and disjoint, and so is the result.
fn difference(ranges: &[Range], holes: &[Range]) -> Vec<Range> {
    let mut out = Vec::with_capacity(ranges.len());
    let mut next_hole = 0;
    for &(first, last) in ranges {
        let mut from = Some(first);
        // A hole may reach into the next range too: it is passed only when it ends before this range does.
        while let (Some(start), Some(&(hole_first, hole_last))) = (from, holes.get(next_hole)) {
            if hole_first > last {
                break;
            }
            if hole_last >= start {
                if hole_first > start {
                    out.push((start, hole_first - 1));
                }
                from = hole_last.checked_add(1).filter(|start| *start <= last);
            }
            if hole_last > last {
                break;
            }
            next_hole += 1;
        }
        if let Some(start) = from {
            out.push((start, last));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{difference, merged};

    /// All sets of small numbers, as bit masks, against sets of ranges.
    #[test]
    fn small_sets_behave_as_sets() {
        let ranges = |mask: u32| merged((0..7).filter(|bit| mask >> bit & 1 == 1).map(|bit| (bit, bit)).collect());
        for left in 0..128 {
            for right in 0..128 {
                assert_eq!(difference(&ranges(left), &ranges(right)), ranges(left & !right), "{left:b} {right:b}");
                let both = ranges(left).into_iter().chain(ranges(right)).collect();
                assert_eq!(merged(both), ranges(left | right));
            }
        }
    }

    #[test]
    fn the_ends_of_the_number_line_do_not_overflow() {
        assert_eq!(difference(&[(0, u128::MAX)], &[(0, 0), (u128::MAX, u128::MAX)]), vec![(1, u128::MAX - 1)]);
        assert_eq!(difference(&[(5, u128::MAX)], &[(0, u128::MAX)]), vec![]);
        assert_eq!(merged(vec![(0, u128::MAX), (3, 4)]), vec![(0, u128::MAX)]);
    }
}
