//! Names, versions, ids, leases, quotas, keys: what is accepted, what is refused, and where the edges are.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use sandbank_model::{
    ApiKey, ApiKeyId, AssignmentId, Autoscaling, Counting, ExpiryAction, ExpiryCause, ImageName, InvalidName, InvalidSizing,
    KeyHash, Lease, PoolName, PortAccess, QuotaLimits, Resources, Role, SandboxId, Sealed, SemVer, Sizing, TenantId, Timeout,
    Timestamp, Usage, Visibility, VisibilityRule, validate_label_key,
};

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

#[test]
fn pool_names_follow_the_contracts_grammar() {
    for good in ["a", "a1", "base", "a-b", "a--b", &"a".repeat(63)] {
        assert_eq!(good.parse::<PoolName>().unwrap().as_str(), good);
    }
    for bad in ["", "1a", "-a", "a-", "A", "a_b", "a.b", "a b", "ä", "a\n", "a/../b", &"a".repeat(64)] {
        assert!(bad.parse::<PoolName>().is_err(), "{bad:?}");
    }
    let long = "x".repeat(5000).parse::<PoolName>().unwrap_err();
    assert_eq!(long, InvalidName::Length { what: "pool", max: 63, len: 5000 });
    let template = PoolName::parse("template", "Bad").unwrap_err().to_string();
    assert!(template.contains("template") && template.contains("\"Bad\"") && template.contains("lower-case"), "{template}");
}

#[test]
fn image_names_cannot_climb_out_of_a_directory() {
    for good in ["host", "e2bdev/base", "blaxel/base-image:latest", "registry.example:5000/a/b@sha256:00", "A.b_c-1"] {
        assert_eq!(good.parse::<ImageName>().unwrap().as_str(), good);
    }
    for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".hidden", "-a", ":tag", "a b", "a\0", "ä", &"a".repeat(256)]
    {
        assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
    }
}

#[test]
fn label_keys_are_printable_and_bounded() {
    for good in ["a", "app.kubernetes.io/name", "日本", &"k".repeat(317)] {
        assert!(validate_label_key(good).is_ok(), "{good:?}");
    }
    for bad in ["", " ", "a b", "a\t", "a\0", &"k".repeat(318)] {
        assert!(validate_label_key(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn versions_are_three_plain_numbers_ordered_as_numbers() {
    let version = |text: &str| text.parse::<SemVer>();
    assert!(version("1.10.0").unwrap() > version("1.9.9").unwrap());
    assert!(version("2.0.0").unwrap() > version("1.99.99").unwrap());
    for bad in ["", "1", "1.2", "1.2.3.4", "v1.2.3", "1.2.x", "01.2.3", "1.2.-3", "1.2.+3", "1.2.3 ", "1..3", "1.2.4294967296"] {
        assert!(version(bad).is_err(), "{bad:?}");
    }
    assert_eq!(version("0.0.1").unwrap(), SemVer::FIRST);
    assert_eq!(version("1.2.3").unwrap().next_patch(), version("1.2.4").unwrap());
    assert_eq!(serde_json::to_string(&SemVer::FIRST).unwrap(), "\"0.0.1\"");
    assert!(serde_json::from_str::<SemVer>("\"1.2\"").is_err());
}

#[test]
fn an_id_has_one_spelling() {
    let id = SandboxId::new(at(1_700_000_000_000), [7; 10]);
    let text = id.to_string();
    assert_eq!((text.len(), text.parse::<SandboxId>().unwrap()), (36, id));
    let other_spellings = [text.to_uppercase(), text.replace('-', ""), format!("{{{text}}}"), format!("urn:uuid:{text}")];
    for bad in other_spellings.iter().map(String::as_str).chain(["", "x", "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f607g", "../../etc"]) {
        assert!(bad.parse::<SandboxId>().is_err(), "{bad:?}");
    }
    let long = "a".repeat(100_000).parse::<SandboxId>().unwrap_err();
    assert!(long.to_string().len() < 300, "a refusal never repeats more than a little of what was sent");
}

#[test]
fn the_earlier_clock_ends_a_lease() {
    let lease = |expires_at: Option<u64>, idle: Option<u64>| Lease {
        holder: "holder".to_owned(),
        assignment: AssignmentId::new(at(0), [1; 10]),
        claimed_at: at(0),
        expires_at: expires_at.map(at),
        idle_timeout: idle.map(Duration::from_millis),
        on_expiry: ExpiryAction::Kill,
        metadata: BTreeMap::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        env: BTreeMap::new(),
        ports: PortAccess::default(),
    };
    let active = at(100);
    assert_eq!(lease(None, None).deadline(active), None);
    assert_eq!(lease(None, None).expiry(active, Timestamp::MAX), None);
    assert_eq!(lease(Some(500), None).deadline(active), Some((at(500), ExpiryCause::Deadline)));
    assert_eq!(lease(None, Some(50)).deadline(active), Some((at(150), ExpiryCause::Idle)));
    assert_eq!(lease(Some(500), Some(50)).deadline(active), Some((at(150), ExpiryCause::Idle)));
    assert_eq!(lease(Some(120), Some(50)).deadline(active), Some((at(120), ExpiryCause::Deadline)));
    assert_eq!(lease(Some(150), Some(50)).deadline(active), Some((at(150), ExpiryCause::Deadline)), "a tie is the deadline's");
    assert_eq!(lease(Some(500), None).expiry(active, at(499)), None);
    assert_eq!(lease(Some(500), None).expiry(active, at(500)), Some(ExpiryCause::Deadline));
    assert_eq!(lease(None, Some(u64::MAX)).deadline(active), Some((Timestamp::MAX, ExpiryCause::Idle)), "no overflow");
}

#[test]
fn times_end_in_the_year_9999_and_never_overflow() {
    assert_eq!(Timestamp::from_millis(u64::MAX), Timestamp::MAX);
    assert_eq!(Timestamp::MAX.plus(Duration::MAX), Timestamp::MAX);
    assert_eq!(at(5).plus(Timeout::LONGEST).since(at(5)), Timeout::LONGEST);
    assert_eq!(at(5).since(at(10)), Duration::ZERO);
    assert_eq!((Timeout::Off.duration(), Timeout::After(Duration::ZERO).duration()), (None, Some(Duration::ZERO)));
}

#[test]
fn sizings_are_checked_against_each_other() {
    let check = |replicas, min, max, enabled| {
        let autoscaling = Autoscaling { enabled, ..Autoscaling::default() };
        Sizing { replicas, min, max, counting: Counting::Total }.validate(&autoscaling)
    };
    assert_eq!(check(0, None, None, false), Ok(()));
    assert_eq!(check(3, Some(3), Some(3), true), Ok(()));
    assert_eq!(check(3, Some(5), Some(4), false), Err(InvalidSizing::MinAboveMax { min: 5, max: 4 }));
    assert_eq!(check(3, Some(4), Some(5), false), Err(InvalidSizing::OutOfBounds { replicas: 3, min: 4, max: 5 }));
    assert_eq!(check(6, Some(4), Some(5), false), Err(InvalidSizing::OutOfBounds { replicas: 6, min: 4, max: 5 }));
    assert_eq!(check(3, Some(1), None, true), Err(InvalidSizing::AutoscalingUnbounded));
    assert_eq!(check(u32::MAX, None, None, false), Err(InvalidSizing::TooMany { what: "replicas", value: u32::MAX }));
    assert_eq!(check(1, None, Some(100_001), false), Err(InvalidSizing::TooMany { what: "maxReplicas", value: 100_001 }));
}

#[test]
fn a_quota_refuses_the_first_that_does_not_fit_and_says_by_how_much() {
    let each = Resources { cpu_millis: 500, memory_bytes: 100, ..Resources::DEFAULT };
    let mut used = Usage::default();
    used.add(&each);
    used.add(&each);
    assert_eq!(used, Usage { sandboxes: 2, cpu_millis: 1000, memory_bytes: 200 });
    let quota = QuotaLimits { sandboxes: Some(4), cpu_millis: Some(2000), memory_bytes: None };
    assert_eq!(quota.check(&used, &each, 2), Ok(()), "exactly full is allowed");
    let refused = quota.check(&used, &each, 3).unwrap_err();
    assert_eq!((refused.what, refused.wanted, refused.limit), ("sandboxes", 5, 4));
    let cpu = QuotaLimits { cpu_millis: Some(1400), ..QuotaLimits::default() }.check(&used, &each, 1).unwrap_err();
    assert_eq!((cpu.what, cpu.wanted, cpu.limit), ("cpu (millicores)", 1500, 1400));
    let huge = Resources { memory_bytes: u64::MAX, ..each };
    let memory = QuotaLimits { memory_bytes: Some(u64::MAX - 1), ..QuotaLimits::default() };
    assert!(memory.check(&used, &huge, u64::MAX).is_err(), "no overflow makes room");
    assert_eq!(QuotaLimits::default().check(&used, &huge, u64::MAX), Ok(()));
}

#[test]
fn resources_stay_within_their_limits() {
    let zero = Resources { cpu_millis: 0, memory_bytes: 0, disk_bytes: 0, pids: 0 };
    assert_eq!(zero.clamped(), Resources::MIN);
    assert_eq!(Resources::DEFAULT.multiplied(1), Resources::DEFAULT);
    let twice = Resources::DEFAULT.multiplied(2);
    assert_eq!((twice.cpu_millis, twice.memory_bytes), (2000, 1024 * 1024 * 1024));
    assert_eq!((twice.disk_bytes, twice.pids), (Resources::DEFAULT.disk_bytes, Resources::DEFAULT.pids));
    let most = Resources::DEFAULT.multiplied(u32::MAX);
    assert_eq!((most.cpu_millis, most.memory_bytes), (Resources::MAX.cpu_millis, Resources::MAX.memory_bytes));
}

#[test]
fn a_key_hash_is_64_hexadecimal_digits_and_is_not_shown() {
    let hash = KeyHash([0xab; 32]);
    assert_eq!(KeyHash::from_hex(&hash.to_hex()), Some(hash));
    for bad in [String::new(), "a".repeat(63), "a".repeat(65), "g".repeat(64), "+f".repeat(32), "é".repeat(32)] {
        assert_eq!(KeyHash::from_hex(&bad), None, "{bad:?}");
    }
    assert_eq!(format!("{hash:?}"), "KeyHash(abababababababab…)");
}

#[test]
fn a_key_is_valid_until_it_expires_or_is_revoked() {
    let now = at(1000);
    let key = ApiKey {
        id: ApiKeyId::new(now, [1; 10]),
        hash: KeyHash([1; 32]),
        tenant: TenantId::new(now, [1; 10]),
        role: Role::Member,
        description: None,
        annotations: BTreeMap::new(),
        issued_at: now,
        expires_at: None,
        revoked_at: None,
    };
    assert!(key.is_valid(Timestamp::MAX));
    let expiring = ApiKey { expires_at: Some(at(2000)), ..key.clone() };
    assert!(expiring.is_valid(at(1999)) && !expiring.is_valid(at(2000)));
    assert!(!ApiKey { revoked_at: Some(now), ..key }.is_valid(now));
}

#[test]
fn no_visibility_rule_means_everybody_and_one_match_is_enough() {
    let rule = |team: &str, users: &[&str]| VisibilityRule {
        team: team.to_owned(),
        users: users.iter().map(|user| (*user).to_owned()).collect(),
    };
    assert!(Visibility::default().allows("any", "body"));
    let some = Visibility { rules: vec![rule("a", &[]), rule("b", &["ann"])] };
    assert!(some.allows("a", "anyone") && some.allows("b", "ann"));
    assert!(!some.allows("b", "bob") && !some.allows("c", "ann"));
}

proptest! {
    #[test]
    fn what_parses_as_a_name_matches_the_grammar_and_comes_back(text in "[a-zA-Z0-9._ -]{0,70}") {
        let bytes = text.as_bytes();
        let inner = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        let expected = (1..=63).contains(&bytes.len()) && inner && bytes[0].is_ascii_lowercase() && bytes[bytes.len() - 1] != b'-';
        let parsed = text.parse::<PoolName>();
        prop_assert_eq!(parsed.is_ok(), expected);
        if let Ok(name) = parsed {
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<PoolName>(&json).unwrap(), name);
        }
    }

    #[test]
    fn versions_come_back_and_order_by_their_numbers(a in any::<(u32, u32, u32)>(), b in any::<(u32, u32, u32)>()) {
        let version = |(major, minor, patch)| SemVer { major, minor, patch };
        prop_assert_eq!(version(a).to_string().parse::<SemVer>().unwrap(), version(a));
        prop_assert_eq!(version(a).cmp(&version(b)), a.cmp(&b));
    }

    #[test]
    fn nothing_that_is_parsed_panics(text in any::<String>()) {
        let _ = (text.parse::<PoolName>(), text.parse::<ImageName>(), text.parse::<SemVer>(), text.parse::<SandboxId>());
        let _ = (KeyHash::from_hex(&text), validate_label_key(&text));
    }

    #[test]
    fn ids_sort_by_age(a in 0..u64::MAX >> 16, b in 0..u64::MAX >> 16, random in any::<[u8; 10]>()) {
        let id = |millis| SandboxId::new(Timestamp::from_millis(millis), random);
        let (a, b) = (Timestamp::from_millis(a).as_millis(), Timestamp::from_millis(b).as_millis());
        prop_assert_eq!(id(a).cmp(&id(b)), a.cmp(&b));
    }
}

#[test]
fn a_sealed_secret_is_kept_in_hexadecimal_and_not_shown() {
    let sealed = Sealed(vec![0x00, 0xab, 0xff]);
    let kept = serde_json::to_string(&sealed).unwrap();
    assert_eq!(kept, "\"00abff\"");
    assert_eq!(serde_json::from_str::<Sealed>(&kept).unwrap(), sealed);
    assert!(!format!("{sealed:?}").contains("ab"), "{sealed:?}");
    for damaged in ["\"0\"", "\"00a\"", "\"zz\"", "\"+1\"", "\"é\""] {
        let error = serde_json::from_str::<Sealed>(damaged).unwrap_err().to_string();
        assert!(error.contains("hexadecimal"), "{error}");
    }
}
