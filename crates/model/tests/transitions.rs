//! The state machine: every pair of state and command, and random walks through it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sandbank_model::{
    Actor, AssignmentId, Command, DriverHandle, Event, ExitInfo, ExpiryAction, ExpiryCause, Failure, FailureReason, Lease,
    LeaseChange, NetworkPolicy, PortAccess, PortAccessChange, PublicPorts, Refusal, Sandbox, SandboxId, SandboxSpec, State,
    StopCause, TenantId, Timeout, Timestamp, transition,
};

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn sandbox() -> Sandbox {
    let now = at(1000);
    let spec = SandboxSpec::of_image("host".parse().unwrap());
    Sandbox::provisioning(SandboxId::new(now, [1; 10]), TenantId::new(now, [2; 10]), spec, "fake", now)
}

fn lease(now: Timestamp, life: Option<u64>, idle: Option<u64>) -> Lease {
    Lease {
        holder: "holder".to_owned(),
        assignment: AssignmentId::new(now, [3; 10]),
        claimed_at: now,
        expires_at: life.map(|life| now.plus(Duration::from_millis(life))),
        idle_timeout: idle.map(Duration::from_millis),
        on_expiry: ExpiryAction::Kill,
        metadata: BTreeMap::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        env: BTreeMap::new(),
        network: None,
        ports: PortAccess::default(),
    }
}

fn handle() -> DriverHandle {
    DriverHandle("handle".to_owned())
}

fn failure() -> Failure {
    Failure { reason: FailureReason::AgentDied, message: "died".to_owned() }
}

/// One of each command, in the order of the table's columns.
fn commands(now: Timestamp) -> [Command; 15] {
    [
        Command::MarkReady(handle()),
        Command::MarkReadyClaimed(handle(), Box::new(lease(now, None, None))),
        Command::Claim(Box::new(lease(now, None, None))),
        Command::BeginPause,
        Command::FinishPause,
        Command::BeginResume,
        Command::FinishResume,
        Command::Renew(LeaseChange::default()),
        Command::ExpireAndKeep(ExpiryCause::Deadline),
        Command::BeginStop(StopCause::Released),
        Command::FinishStop,
        Command::Fail(failure()),
        Command::CommandExited(ExitInfo { code: 0 }),
        Command::SetNetwork(Some(Arc::new(NetworkPolicy::closed()))),
        Command::ChangePortAccess(PortAccessChange::RevokeTokens),
    ]
}

/// A record in this state, with an endless lease where the state has one.
fn in_state(state: State) -> Sandbox {
    let mut record = sandbox();
    let endless = || Box::new(lease(at(2000), None, None));
    let path = match state {
        State::Provisioning => vec![],
        State::Ready => vec![Command::MarkReady(handle())],
        State::Running => vec![Command::MarkReadyClaimed(handle(), endless())],
        State::Pausing => vec![Command::MarkReadyClaimed(handle(), endless()), Command::BeginPause],
        State::Paused => vec![Command::MarkReadyClaimed(handle(), endless()), Command::FinishPause],
        State::Resuming => vec![Command::MarkReadyClaimed(handle(), endless()), Command::FinishPause, Command::BeginResume],
        State::Stopping => vec![Command::BeginStop(StopCause::ScaledDown)],
        State::Terminated => vec![Command::BeginStop(StopCause::ScaledDown), Command::FinishStop],
        State::Failed => vec![Command::Fail(failure())],
        State::Expired => {
            vec![Command::MarkReadyClaimed(handle(), endless()), Command::ExpireAndKeep(ExpiryCause::Deadline)]
        }
    };
    for command in path {
        record = transition(&record, command, &Actor::system(), at(2000)).unwrap().0;
    }
    assert_eq!(record.state, state);
    record
}

/// What becomes of each state at each command: a state, `same` for itself, `already`, or `-` for refused.
const TABLE: &str = "
             mark-ready mark-claimed claim   begin-pause finish-pause begin-resume finish-resume renew expire  begin-stop finish-stop fail    exited  network ports
provisioning ready      running      -       -           -            -            -             -     -       stopping   -           failed  -       -       -
ready        -          -            running -           -            -            -             -     -       stopping   -           failed  same    -       -
running      -          -            -       pausing     paused       already      already       same  expired stopping   -           failed  same    same    same
pausing      -          -            -       already     paused       -            -             same  expired stopping   -           failed  same    same    same
paused       -          -            -       already     already      resuming     running       same  expired stopping   -           failed  same    same    same
resuming     -          -            -       -           -            already      running       same  expired stopping   -           failed  same    same    same
stopping     -          -            -       -           -            -            -             -     -       already    terminated  -       -       -       -
terminated   -          -            -       -           -            -            -             -     -       -          already     -       -       -       -
failed       -          -            -       -           -            -            -             -     -       -          -           already -       -       -
expired      -          -            -       -           -            -            -             -     -       stopping   -           failed  -       -       -
";

#[test]
fn every_pair_of_state_and_command_does_what_the_table_says() {
    let rows: Vec<Vec<&str>> = TABLE.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), State::ALL.len());
    for (row, state) in rows.iter().zip(State::ALL) {
        assert_eq!((row[0], row.len()), (state.as_str(), 16));
        for (expected, command) in row[1..].iter().zip(commands(at(3000))) {
            let record = in_state(state);
            let outcome = transition(&record, command.clone(), &Actor::system(), at(3000));
            let found = match &outcome {
                Ok((next, _)) if next.state == state => "same",
                Ok((next, _)) => next.state.as_str(),
                Err(Refusal::Already { state: named }) => {
                    assert_eq!(*named, state);
                    "already"
                }
                Err(Refusal::State { state: named, .. }) => {
                    assert_eq!(*named, state);
                    "-"
                }
                Err(Refusal::LeaseEnded { .. }) => "lease ended",
            };
            assert_eq!(found, *expected, "{} at {command:?}", state.as_str());
        }
    }
}

#[test]
fn an_ended_lease_refuses_what_its_holder_asks_but_not_what_ends_it() {
    let ended_at = at(2000 + 500);
    let claimed = |state_path: &[Command]| {
        let start = Command::MarkReadyClaimed(handle(), Box::new(lease(at(2000), Some(500), None)));
        let mut record = transition(&sandbox(), start, &Actor::system(), at(2000)).unwrap().0;
        for command in state_path {
            record = transition(&record, command.clone(), &Actor::system(), at(2100)).unwrap().0;
        }
        record
    };
    let renew = Command::Renew(LeaseChange { expires: Some(Timeout::After(Duration::from_secs(9))), ..LeaseChange::default() });
    let refused = |record: &Sandbox, command: &Command| {
        transition(record, command.clone(), &Actor::system(), ended_at).map(|(next, _)| next.state)
    };
    let lease_ended = Err(Refusal::LeaseEnded { cause: ExpiryCause::Deadline });
    let running = claimed(&[]);
    for command in [Command::BeginPause, renew.clone()] {
        assert_eq!(refused(&running, &command), lease_ended, "{command:?}");
        assert!(transition(&running, command, &Actor::system(), at(2499)).is_ok(), "a millisecond before it is fine");
    }
    let paused = claimed(&[Command::FinishPause]);
    assert_eq!(refused(&paused, &Command::BeginResume), lease_ended);
    assert_eq!(refused(&paused, &Command::FinishResume), lease_ended);
    assert_eq!(refused(&paused, &renew), Ok(State::Paused), "that is what the pause was for");
    for (command, state) in [
        (Command::FinishPause, State::Paused),
        (Command::ExpireAndKeep(ExpiryCause::Deadline), State::Expired),
        (Command::BeginStop(StopCause::Expired(ExpiryCause::Deadline)), State::Stopping),
        (Command::Fail(failure()), State::Failed),
    ] {
        assert_eq!(refused(&running, &command), Ok(state));
    }
}

#[test]
fn a_paused_sandbox_is_ended_by_its_deadline_but_never_by_idleness() {
    let start = Command::MarkReadyClaimed(handle(), Box::new(lease(at(2000), Some(10_000), Some(100))));
    let running = transition(&sandbox(), start, &Actor::system(), at(2000)).unwrap().0;
    assert_eq!(running.expiry(at(2099)), None);
    assert_eq!(running.expiry(at(2100)), Some(ExpiryCause::Idle));
    let paused = transition(&running, Command::FinishPause, &Actor::system(), at(2050)).unwrap().0;
    assert_eq!(paused.expiry(at(11_999)), None);
    assert_eq!(paused.expiry(at(12_000)), Some(ExpiryCause::Deadline), "idle since long, and now past its end");
    let resumed = transition(&paused, Command::FinishResume, &Actor::system(), at(5000)).unwrap().0;
    assert_eq!(resumed.expiry(at(5099)), None, "resuming is activity");
    assert_eq!(resumed.expiry(at(5100)), Some(ExpiryCause::Idle));
}

#[test]
fn renewing_moves_the_clocks_as_asked() {
    let claimed = |life| {
        let start = Command::MarkReadyClaimed(handle(), Box::new(lease(at(2000), life, None)));
        transition(&sandbox(), start, &Actor::system(), at(2000)).unwrap().0
    };
    let renewed = |life, expires, only_extend| {
        let change = LeaseChange { expires, only_extend, ..LeaseChange::default() };
        let next = transition(&claimed(life), Command::Renew(change), &Actor::system(), at(3000)).unwrap().0;
        assert_eq!(next.last_activity_at, at(3000));
        next.lease.unwrap().expires_at
    };
    let after = |millis| Some(Timeout::After(Duration::from_millis(millis)));
    assert_eq!(renewed(Some(5000), after(100), false), Some(at(3100)), "shorter, from now");
    assert_eq!(renewed(Some(5000), after(100), true), Some(at(7000)), "never earlier when only extending");
    assert_eq!(renewed(Some(5000), after(9000), true), Some(at(12_000)));
    assert_eq!(renewed(None, after(100), true), None, "an endless lease is not shortened by extending it");
    assert_eq!(renewed(None, after(100), false), Some(at(3100)));
    assert_eq!(renewed(Some(5000), Some(Timeout::Off), false), None);
    assert_eq!(renewed(Some(5000), Some(Timeout::Off), true), None, "no end is later than any");
    assert_eq!(renewed(Some(5000), None, false), Some(at(7000)));
    let change = LeaseChange {
        idle: Some(Timeout::After(Duration::from_secs(7))),
        on_expiry: Some(ExpiryAction::Keep),
        ..LeaseChange::default()
    };
    let lease = transition(&claimed(None), Command::Renew(change), &Actor::system(), at(3000)).unwrap().0.lease.unwrap();
    assert_eq!((lease.idle_timeout, lease.on_expiry), (Some(Duration::from_secs(7)), ExpiryAction::Keep));
}

fn any_command() -> impl Strategy<Value = (usize, Option<u64>, Option<u64>, u64)> {
    (0..14_usize, proptest::option::of(0..2000_u64), proptest::option::of(0..500_u64), 0..300_u64)
}

fn build(which: usize, life: Option<u64>, idle: Option<u64>, now: Timestamp) -> Command {
    let timeout = |millis: Option<u64>| millis.map_or(Timeout::Off, |millis| Timeout::After(Duration::from_millis(millis)));
    match which {
        1 => Command::MarkReadyClaimed(handle(), Box::new(lease(now, life, idle))),
        2 => Command::Claim(Box::new(lease(now, life, idle))),
        7 => Command::Renew(LeaseChange { expires: Some(timeout(life)), idle: Some(timeout(idle)), ..LeaseChange::default() }),
        other => commands(now)[other].clone(),
    }
}

/// What holds for every record that the state machine makes.
fn check_record(record: &Sandbox, now: Timestamp, claims: u32) {
    assert_eq!(record.lease.is_some(), claims > 0, "a lease from the first claim on, and only then");
    assert!(claims <= 1, "handed out once in a life");
    if record.state.is_claimed() {
        assert_eq!(claims, 1);
    }
    if matches!(record.state, State::Ready | State::Running | State::Pausing | State::Paused | State::Resuming) {
        assert!(record.handle.is_some() && record.ready_at.is_some() && record.ended_at.is_none());
    }
    assert_eq!(record.failure.is_some(), record.state == State::Failed);
    assert_eq!(record.stop_cause.is_some(), matches!(record.state, State::Stopping | State::Terminated));
    if !record.state.is_live() || record.state == State::Expired {
        assert!(record.ended_at.is_some());
        assert_eq!(record.expiry(Timestamp::MAX), None, "no clock ends what has ended");
    }
    let times = [Some(record.created_at), record.ready_at, record.paused_at, record.stopping_at, record.ended_at];
    for time in times.into_iter().flatten().chain([record.last_activity_at]) {
        assert!(record.created_at <= time && time <= now);
    }
}

#[test]
fn revoked_tokens_and_public_ports_are_kept_apart() {
    let change = |record: &Sandbox, change| {
        let (next, event) = transition(record, Command::ChangePortAccess(change), &Actor::system(), at(3000)).unwrap();
        (next.lease.unwrap().ports, event.kind.as_str())
    };
    let record = in_state(State::Running);
    let only = PublicPorts::Only([8000].into());
    let (access, event) = change(&record, PortAccessChange::Public(only.clone()));
    assert_eq!((&access.public, access.token_generation, event), (&only, 0, "port-access-changed"));
    assert!(access.public.contains(8000) && !access.public.contains(8001) && PublicPorts::All.contains(1));
    let (access, event) = change(&record, PortAccessChange::RevokeTokens);
    assert_eq!((access.public, access.token_generation, event), (PublicPorts::None, 1, "port-tokens-revoked"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_walks_keep_the_invariants(walk in proptest::collection::vec(any_command(), 1..60)) {
        let mut record = sandbox();
        let (mut now, mut claims) = (record.created_at, 0);
        let actor = Actor { name: "somebody".to_owned(), request_id: Some("req".to_owned()) };
        for (which, life, idle, wait) in walk {
            now = now.plus(Duration::from_millis(wait));
            let command = build(which, life, idle, now);
            let before = record.clone();
            match transition(&record, command.clone(), &actor, now) {
                Ok((next, event)) => {
                    prop_assert!(record.state.is_live(), "from a state that is the end: {:?}", command);
                    prop_assert_eq!(next.generation, record.generation + 1);
                    prop_assert!(next.last_activity_at >= record.last_activity_at);
                    prop_assert_eq!((&next.id, &next.tenant, &next.spec, next.created_at), (&record.id, &record.tenant, &record.spec, record.created_at));
                    let Event { at, sandbox, actor: by, tenant, .. } = event;
                    prop_assert_eq!((at, sandbox, by, tenant), (now, Some(next.id), actor.clone(), next.tenant));
                    if matches!(command, Command::Claim(_) | Command::MarkReadyClaimed(..)) {
                        claims += 1;
                    }
                    record = next;
                }
                Err(_) => prop_assert_eq!(&record, &before, "a refusal changes nothing"),
            }
            check_record(&record, now, claims);
        }
    }

    #[test]
    fn words_of_states_are_their_own(index in 0..State::ALL.len()) {
        let state = State::ALL[index];
        prop_assert_eq!(State::from_word(state.as_str()), Some(state));
        prop_assert_eq!(State::from_word(&state.as_str().to_uppercase()), None);
    }
}
