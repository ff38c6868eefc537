//! Records that are found by name beside their owner: templates and images.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use sandbank_model::TenantId;

/// One record under each name of each owner; the owner `None` is the whole installation.
#[derive(Debug, Clone)]
pub(super) struct Shelf<N, T>(BTreeMap<Option<TenantId>, BTreeMap<N, Arc<T>>>);

impl<N, T> Default for Shelf<N, T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<N: Ord, T> Shelf<N, T> {
    pub(super) fn get(&self, owner: Option<TenantId>, name: &N) -> Option<&Arc<T>> {
        self.0.get(&owner)?.get(name)
    }

    /// Sets or forgets a record, and returns what stood there.
    pub(super) fn put(&mut self, owner: Option<TenantId>, name: N, record: Option<Arc<T>>) -> Option<Arc<T>> {
        match record {
            Some(record) => self.0.entry(owner).or_default().insert(name, record),
            None => {
                let names = self.0.get_mut(&owner)?;
                let old = names.remove(&name);
                if names.is_empty() {
                    self.0.remove(&owner);
                }
                old
            }
        }
    }

    /// All of these owners, by name.
    pub(super) fn of(&self, owners: &[Option<TenantId>]) -> Vec<Arc<T>> {
        let mut seen = HashSet::new();
        let names = owners.iter().filter(|owner| seen.insert(**owner)).filter_map(|owner| self.0.get(owner));
        by_name(names)
    }

    /// All there are, by name.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        by_name(self.0.values())
    }
}

fn by_name<'a, N: Ord + 'a, T: 'a>(owners: impl Iterator<Item = &'a BTreeMap<N, Arc<T>>>) -> Vec<Arc<T>> {
    let mut found: Vec<(&N, &Arc<T>)> = owners.flatten().collect();
    // Stable: of one name, the owner that was named first comes first.
    found.sort_by_key(|(name, _)| *name);
    found.into_iter().map(|(_, record)| Arc::clone(record)).collect()
}
