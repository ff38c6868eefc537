//! `kill -9` of the server and of the launcher at random moments under load: nothing is lost, leaked or doubled (design.md §7,
//! invariants 1 to 3).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use serde_json::Value;
use support::{Server, can_run, http, launcher_of, wait_for};

/// Rounds of load, kill, look.
const ROUNDS: u64 = 50;
const WORKERS: u64 = 4;
/// Sandboxes that a worker holds before it gives one back.
const HELD_MAX: usize = 3;
const POOL: &str = "base";

/// What was answered, as the holders remember it.
#[derive(Default)]
struct Ledger {
    /// Claimed, answered, not given back.
    held: BTreeSet<String>,
    /// Given back, answered.
    released: BTreeSet<String>,
    /// Every id that was ever answered.
    seen: BTreeSet<String>,
}

struct Shared {
    address: RwLock<String>,
    key: String,
    ledger: Mutex<Ledger>,
    /// Workers hold it for reading during one operation; who looks at everything holds it for writing.
    gate: RwLock<()>,
    stop: AtomicBool,
    answered: AtomicU64,
}

impl Shared {
    fn ask(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, Value)> {
        let address = self.address.read().unwrap().clone();
        http(&address, &self.key, method, path, body)
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }
}

/// Numbers that look random and are the same in every run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn fifty_kills_under_load_lose_leak_and_double_nothing() {
    if !can_run() {
        return;
    }
    let mut server = Server::start();
    server.pool(POOL, 6);
    let shared = Shared {
        address: RwLock::new(server.address()),
        key: server.key(),
        ledger: Mutex::default(),
        gate: RwLock::default(),
        stop: AtomicBool::new(false),
        answered: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let stop_at_the_end = StopAtTheEnd(&shared.stop);
        for worker in 0..WORKERS {
            let shared = &shared;
            scope.spawn(move || work(shared, Dice(0x9e37_79b9 + worker)));
        }
        let mut dice = Dice(0x5eed);
        for round in 0..ROUNDS {
            std::thread::sleep(Duration::from_millis(20 + dice.below(250)));
            strike(&mut server, round, &mut dice);
            let _alone = shared.gate.write().unwrap();
            shared.address.write().unwrap().clone_from(&server.address());
            look(&shared, round);
        }
        drop(stop_at_the_end);
    });
    let answered = shared.answered.load(Ordering::Relaxed);
    assert!(answered > ROUNDS * 4, "only {answered} operations were answered: that is no load");
    eprintln!("{ROUNDS} kills, {answered} operations answered, {} sandboxes held in all", shared.ledger().seen.len());
    for id in std::mem::take(&mut shared.ledger().held) {
        server.words(&["rm", &id]).ok();
    }
    server.finish();
}

/// Ends the workers also when a check fails.
struct StopAtTheEnd<'a>(&'a AtomicBool);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Claims, makes and gives back until told to stop. An operation that was not answered means nothing.
fn work(shared: &Shared, mut dice: Dice) {
    let mut mine: Vec<String> = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let gate = shared.gate.read();
        let answered = if mine.len() >= HELD_MAX || (!mine.is_empty() && dice.below(4) == 0) {
            let index = usize::try_from(dice.below(mine.len() as u64)).unwrap();
            give_back(shared, mine.swap_remove(index))
        } else {
            let body = match dice.below(4) {
                0 => r#"{"image":"host","memory":"128Mi"}"#.to_owned(),
                _ => format!(r#"{{"poolName":"{POOL}","startupTimeout":"2s"}}"#),
            };
            take(shared, &body).map(|id| mine.extend(id))
        };
        drop(gate);
        match answered {
            Ok(()) => {
                shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The id, when one was given; `None` when the server said that none is free.
fn take(shared: &Shared, body: &str) -> std::io::Result<Option<String>> {
    let (status, answer) = shared.ask("POST", "/v1/sandboxes", body)?;
    if status != 201 {
        // Refused for lack of one, or because the launcher was just killed: clearly said, nothing held.
        assert!([429, 503].contains(&status), "{status}: {answer}");
        return Ok(None);
    }
    let id = answer["sandbox"]["sandboxId"].as_str().expect("an id").to_owned();
    let mut ledger = shared.ledger();
    assert!(ledger.seen.insert(id.clone()), "{id} was handed out twice");
    ledger.held.insert(id.clone());
    Ok(Some(id))
}

/// From the request on it is nobody's: whether it was done is unknown until it is answered.
fn give_back(shared: &Shared, id: String) -> std::io::Result<()> {
    shared.ledger().held.remove(&id);
    let (status, answer) = shared.ask("DELETE", &format!("/v1/sandboxes/{id}"), "")?;
    assert_eq!(status, 202, "{answer}");
    shared.ledger().released.insert(id);
    Ok(())
}

/// Kills the server, the launcher, or one after the other; afterwards a server serves again.
fn strike(server: &mut Server, round: u64, dice: &mut Dice) {
    let kill_launcher = |server: &Server| {
        if let Some(launcher) = launcher_of(server.pid()) {
            support::send(launcher, rustix::process::Signal::KILL);
        }
    };
    match round % 3 {
        0 => server.kill(),
        1 => {
            kill_launcher(server);
            return;
        }
        _ => {
            kill_launcher(server);
            std::thread::sleep(Duration::from_millis(dice.below(20)));
            server.kill();
        }
    }
    server.start_again();
}

/// Everything that was answered must be so.
fn look(shared: &Shared, round: u64) {
    let live = live(shared);
    let mut ledger = shared.ledger();
    for id in &ledger.held {
        assert_eq!(live.get(id).map(String::as_str), Some("Running"), "round {round}: {id} was answered and is not running");
    }
    for id in &ledger.released {
        assert!(
            live.get(id).is_none_or(|status| status == "Stopping"),
            "round {round}: {id} was given back and is {:?}",
            live[id]
        );
    }
    // One that was claimed without an answer has no holder; somebody has to give it back.
    let unknown: Vec<&String> =
        live.iter().filter(|(id, status)| *status == "Running" && !ledger.held.contains(*id)).map(|(id, _)| id).collect();
    for id in unknown {
        let (status, answer) = shared.ask("DELETE", &format!("/v1/sandboxes/{id}"), "").unwrap();
        assert!([202, 404].contains(&status), "round {round}: {status} {answer}");
    }
    ledger.released.retain(|id| live.contains_key(id));
    let held: Vec<String> = ledger.held.iter().cloned().collect();
    drop(ledger);
    for id in held {
        let (status, answer) = shared.ask("POST", &format!("/v1/sandboxes/{id}/exec"), r#"{"command":"echo here"}"#).unwrap();
        assert_eq!((status, &answer["stdout"]), (200, &"here\n".into()), "round {round}: {id} does not answer: {answer}");
    }
}

/// Status of every claimed sandbox that has not ended.
fn live(shared: &Shared) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let query = "/v1/sandboxes?status=Starting,Running,Stopping,Paused&limit=100";
    wait_for("the list", || {
        let (status, page) = shared.ask("GET", &format!("{query}&offset={}", found.len()), "").ok()?;
        assert_eq!(status, 200, "{page}");
        let items = page["items"].as_array().unwrap();
        for item in items {
            let text = |name: &str| item[name].as_str().unwrap().to_owned();
            let twice = found.insert(text("sandboxId"), text("status"));
            assert!(twice.is_none(), "listed twice: {item}");
        }
        (found.len() as u64 >= page["total"].as_u64().unwrap() || items.is_empty()).then_some(())
    });
    found
}
