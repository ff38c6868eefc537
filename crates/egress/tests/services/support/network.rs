//! A policy that tests can change, and that remembers what it was asked to do.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use sandbank_egress::{Denied, Directory, HeaderName, HeaderValue, HeadersError, OpenError, RequestTarget, SandboxNetwork};
use sandbank_model::{NameGroup, NamedAddress, SandboxId, Transport, Verdict};
use tokio::sync::Semaphore;

#[derive(Default)]
pub struct TestDirectory(Mutex<HashMap<IpAddr, Arc<TestNetwork>>>);

impl TestDirectory {
    pub fn set(&self, source: IpAddr, network: Option<Arc<TestNetwork>>) {
        match network {
            Some(network) => self.0.lock().insert(source, network),
            None => self.0.lock().remove(&source),
        };
    }
}

impl Directory for TestDirectory {
    fn sandbox_at(&self, source: IpAddr) -> Option<Arc<dyn SandboxNetwork>> {
        self.0.lock().get(&source).map(|network| Arc::clone(network) as _)
    }
}

#[derive(Default)]
pub struct Rules {
    /// Names that may be reached.
    pub names: BTreeSet<String>,
    /// Ports at which; empty: all.
    pub ports: BTreeSet<u16>,
    /// What names may stand for.
    pub addresses: BTreeSet<IpAddr>,
    /// What may be reached without a name.
    pub bare_addresses: BTreeSet<IpAddr>,
    /// Names whose addresses are opened, and for whom.
    pub groups: HashMap<String, Vec<NameGroup>>,
    /// Whether any rule speaks of names.
    pub names_count: bool,
    /// Host, field, value.
    pub headers: Vec<(String, HeaderName, HeaderValue)>,
    /// Opening fails.
    pub open_fails: bool,
    /// Header fields cannot be had.
    pub headers_fail: bool,
}

pub struct TestNetwork {
    id: SandboxId,
    pub rules: Mutex<Rules>,
    pub opened: Mutex<Vec<NamedAddress>>,
    pub denials: Mutex<Vec<Denied>>,
    /// What was asked about requests: host and path.
    pub targets: Mutex<Vec<(String, String)>>,
    /// Opening waits for one of these.
    pub open_gate: Semaphore,
}

impl TestNetwork {
    pub fn new(number: u128) -> Self {
        Self {
            id: SandboxId::from_uuid(uuid::Uuid::from_u128(number)),
            rules: Mutex::default(),
            opened: Mutex::default(),
            denials: Mutex::default(),
            targets: Mutex::default(),
            open_gate: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }

    pub fn denials(&self) -> Vec<Denied> {
        self.denials.lock().clone()
    }
}

fn verdict(allowed: bool) -> Verdict {
    if allowed { Verdict::Allow } else { Verdict::Deny }
}

#[async_trait]
impl SandboxNetwork for TestNetwork {
    fn id(&self) -> SandboxId {
        self.id
    }

    fn name_verdict(&self, name: &str, _transport: Option<Transport>, port: Option<u16>) -> Verdict {
        let rules = self.rules.lock();
        let at_port = port.is_none_or(|port| rules.ports.is_empty() || rules.ports.contains(&port));
        verdict(rules.names.contains(name) && at_port)
    }

    fn resolved_verdict(&self, _name: &str, address: IpAddr, _port: Option<u16>) -> Verdict {
        verdict(self.rules.lock().addresses.contains(&address))
    }

    fn address_verdict(&self, address: IpAddr, _port: u16) -> Verdict {
        verdict(self.rules.lock().bare_addresses.contains(&address))
    }

    fn names_count(&self) -> bool {
        self.rules.lock().names_count
    }

    fn groups_of(&self, name: &str) -> Vec<NameGroup> {
        self.rules.lock().groups.get(name).cloned().unwrap_or_default()
    }

    async fn open(&self, _name: &str, addresses: Vec<NamedAddress>) -> Result<(), OpenError> {
        self.open_gate.acquire().await.unwrap().forget();
        if self.rules.lock().open_fails {
            return Err(OpenError("the set is full".to_owned()));
        }
        self.opened.lock().extend(addresses);
        Ok(())
    }

    fn touches_headers(&self, host: &str) -> bool {
        self.rules.lock().headers.iter().any(|(name, ..)| name == host)
    }

    fn headers_for(&self, target: &RequestTarget<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, HeadersError> {
        self.targets.lock().push((target.host.to_owned(), target.path.to_owned()));
        let rules = self.rules.lock();
        if rules.headers_fail {
            return Err(HeadersError("they do not open".to_owned()));
        }
        let of_host = rules.headers.iter().filter(|(host, ..)| host == target.host);
        Ok(of_host.map(|(_, name, value)| (name.clone(), value.clone())).collect())
    }

    fn denied(&self, denied: &Denied) {
        self.denials.lock().push(denied.clone());
    }
}
