//! What a name means, the same for everyone: policies are applied to what comes out of here.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use parking_lot::Mutex;

use super::cache::{Cache, Key, Known, Pending};
use super::upstream::Upstream;
use crate::settings::EgressSettings;

/// Aliases that are followed within one answer.
const ALIASES_MAX: usize = 16;
/// An answer is good for at least so long, whatever it says: shorter ones are a way to have a name checked once and used twice.
const LIFE_MIN: Duration = Duration::from_secs(1);
/// And at most so long: a name that moved is not held for a day.
const LIFE_MAX: Duration = Duration::from_secs(300);
/// How long it is good for when it says that there is nothing and not for how long (RFC 2308 §5).
const LIFE_OF_NOTHING: Duration = Duration::from_secs(5);

/// A question could not be answered; nothing is known about the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failure(pub(crate) &'static str);

/// What upstream said: only records that answer the question, aliases first.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The name is there, or it is not.
    pub(crate) code: ResponseCode,
    /// Aliases, then records of the type that was asked for.
    pub(crate) records: Vec<Record>,
    /// For an answer without records: who says so.
    pub(crate) authority: Option<Record>,
    /// When it must be asked again.
    pub(crate) good_until: Instant,
    /// Its size on the wire, roughly.
    pub(crate) wire_bytes: usize,
}

impl Answer {
    /// Whole seconds that it is still good for, at least one.
    pub(crate) fn life(&self, now: Instant) -> Duration {
        Duration::from_secs(self.good_until.saturating_duration_since(now).as_secs()).max(LIFE_MIN)
    }

    /// The addresses in it.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.records.iter().filter_map(|record| address(&record.data))
    }

    fn of(message: Message, name: &Name, kind: RecordType, now: Instant) -> Self {
        let records = chain(&message.answers, name, kind);
        let authority = message.authorities.into_iter().find(|record| record.record_type() == RecordType::SOA);
        let life = records.iter().map(|record| record.ttl).min().map_or_else(|| life_of_nothing(authority.as_ref()), seconds);
        Self {
            code: message.metadata.response_code,
            wire_bytes: records
                .iter()
                .chain(&authority)
                .filter_map(|record| record.to_bytes().ok())
                .map(|bytes| bytes.len())
                .sum(),
            records,
            authority,
            good_until: now + life.clamp(LIFE_MIN, LIFE_MAX),
        }
    }
}

fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(u64::from(ttl))
}

fn life_of_nothing(authority: Option<&Record>) -> Duration {
    match authority.map(|record| (record.ttl, &record.data)) {
        Some((ttl, RData::SOA(soa))) => seconds(ttl.min(soa.minimum)),
        _ => LIFE_OF_NOTHING,
    }
}

/// The address that a record holds.
pub(crate) fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        // ::ffff:10.0.0.1 is 10.0.0.1 to every system that connects to it.
        RData::AAAA(address) => Some(IpAddr::V6(address.0).to_canonical()),
        _ => None,
    }
}

/// The records that answer the question, along the aliases. What else a server added is nobody's business.
fn chain(answers: &[Record], name: &Name, kind: RecordType) -> Vec<Record> {
    let mut records = Vec::new();
    let mut owner = name.clone();
    for _ in 0..=ALIASES_MAX {
        let owned = || answers.iter().filter(|record| record.dns_class == DNSClass::IN && record.name == owner);
        let wanted = || owned().filter(|record| record.record_type() == kind);
        if wanted().next().is_some() {
            records.extend(wanted().cloned());
            break;
        }
        let Some(alias) = owned().find(|record| record.record_type() == RecordType::CNAME) else { break };
        let RData::CNAME(target) = &alias.data else { break };
        records.push(alias.clone());
        owner = target.0.clone();
    }
    records
}

/// Remembers answers and asks upstreams for the rest, each question once at a time.
pub(crate) struct Resolver {
    upstream: Upstream,
    cache: Mutex<Cache>,
    questions_max: usize,
}

impl Resolver {
    pub(crate) fn new(settings: &EgressSettings) -> Arc<Self> {
        Arc::new(Self {
            upstream: Upstream::new(settings),
            cache: Mutex::new(Cache::new(settings.limits.answers_remembered)),
            questions_max: settings.limits.queries_in_flight_total,
        })
    }

    /// Answers a question about a canonical name.
    pub(crate) async fn look_up(self: &Arc<Self>, name: &str, kind: RecordType) -> Result<Arc<Answer>, Failure> {
        let key = (name.to_owned(), kind);
        let pending = {
            let mut cache = self.cache.lock();
            match cache.look_up(&key, Instant::now()) {
                Known::Answer(answer) => return Ok(answer),
                Known::Pending(pending) => pending,
                Known::Nothing if cache.pending_count() >= self.questions_max => {
                    return Err(Failure("too many names are being resolved"));
                }
                Known::Nothing => {
                    let pending = self.ask(key.clone());
                    cache.asked(key, pending.clone());
                    pending
                }
            }
        };
        pending.await
    }

    /// The addresses of a canonical name, of both families. One family that cannot be resolved does not hide the other.
    pub(crate) async fn addresses(self: &Arc<Self>, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let (six, four) = tokio::join!(self.look_up(name, RecordType::AAAA), self.look_up(name, RecordType::A));
        match (six, four) {
            (Err(failure), Err(_)) => Err(failure),
            (six, four) => Ok(six.iter().chain(&four).flat_map(|answer| answer.addresses()).collect()),
        }
    }

    /// Asks in a task of its own: a client that goes away does not take the answer from the others that wait.
    fn ask(self: &Arc<Self>, key: Key) -> Pending {
        let this = Arc::clone(self);
        let task = tokio::spawn(async move {
            let asked = this.ask_upstream(&key).await;
            this.cache.lock().settled(key, asked.as_ref().ok());
            asked
        });
        async move { task.await.unwrap_or(Err(Failure("the resolver is shutting down"))) }.boxed().shared()
    }

    async fn ask_upstream(&self, (text, kind): &Key) -> Result<Arc<Answer>, Failure> {
        let mut name = Name::from_ascii(text).map_err(|_| Failure("the name cannot be asked for"))?;
        name.set_fqdn(true);
        let message = self.upstream.ask(&name, *kind).await?;
        Ok(Arc::new(Answer::of(message, &name, *kind, Instant::now())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn alias(from: &str, to: &str, ttl: u32) -> Record {
        Record::from_rdata(name(from), ttl, RData::CNAME(CNAME(name(to))))
    }

    fn at(owner: &str, last: u8, ttl: u32) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A::new(192, 0, 2, last)))
    }

    fn answer(records: Vec<Record>, now: Instant) -> Answer {
        let mut message = Message::query();
        message.add_answers(records);
        Answer::of(message, &name("a.example."), RecordType::A, now)
    }

    #[test]
    fn aliases_are_followed_within_the_answer_and_strangers_are_dropped() {
        let records = vec![
            at("c.example.", 1, 60),
            alias("A.example.", "b.example.", 30),
            at("stranger.example.", 9, 60),
            alias("b.example.", "c.example.", 90),
        ];
        let now = Instant::now();
        let answer = answer(records, now);
        assert_eq!(answer.addresses().collect::<Vec<_>>(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(answer.records.len(), 3);
        assert_eq!(answer.life(now), Duration::from_secs(30), "the shortest of the chain");
    }

    #[test]
    fn a_loop_of_aliases_ends() {
        let answer = answer(vec![alias("a.example.", "b.example.", 1), alias("b.example.", "a.example.", 1)], Instant::now());
        assert_eq!(answer.addresses().count(), 0);
    }

    #[test]
    fn lives_have_bounds() {
        let now = Instant::now();
        assert_eq!(answer(vec![at("a.example.", 1, 0)], now).life(now), LIFE_MIN);
        assert_eq!(answer(vec![at("a.example.", 1, u32::MAX)], now).life(now), LIFE_MAX);
        assert_eq!(answer(Vec::new(), now).life(now), LIFE_OF_NOTHING);
    }
}
