//! Isolation, probed from inside: a static program (tests/probe) runs in a sandbox, and each of its findings is one assertion here.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "isolation/probe.rs"]
mod probe;
mod support;

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use probe::{Findings, install, probe, probe_as, serve};
use sandbank_driver_linux::caps;
use support::{Fixture, can_run, host_pid};

/// Findings that tell a value; the test looks at those itself.
const VALUES: [&str; 12] = [
    "status_SigBlk",
    "status_SigIgn",
    "status_CapInh",
    "status_CapPrm",
    "status_CapEff",
    "status_CapBnd",
    "status_CapAmb",
    "status_NoNewPrivs",
    "status_Seccomp",
    "status_Seccomp_filters",
    "status_Uid",
    "uid_map",
];

fn hexadecimal(findings: &Findings, name: &str) -> u64 {
    u64::from_str_radix(findings.detail(name), 16).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_reaches_nothing_outside() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create().await;
    install(&fixture, &sandbox).await;
    let data = fixture.data.path().canonicalize().unwrap();
    let secret = data.join("secret");
    std::fs::write(&secret, "of the host").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("sandbank-isolation-{}", std::process::id());
    let _socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let port = port.local_addr().unwrap().port().to_string();
    let arguments = ["root", data.to_str().unwrap(), secret.to_str().unwrap(), &port, &name];

    let findings = probe(&fixture, &sandbox, &arguments).await;

    findings.all_hold_but(&VALUES);
    findings.include(&[
        "only_three_descriptors_are_open",
        "only_its_own_processes_are_seen",
        "only_the_launchers_mounts_are_seen",
        "mountinfo_names_no_path_of_the_host",
        "a_file_of_the_host_is_not_there",
        "a_port_of_the_host_cannot_be_reached",
        "an_abstract_socket_of_the_host_cannot_be_reached",
        "mount",
        "new_user_namespace",
        "clone_with_new_user_namespace",
        "load_a_module",
        "raw_socket",
        "attach_to_the_agent",
        "the_agent_was_sent_every_signal",
        "the_agents_descriptors_are_closed",
        "its_own_child_can_be_traced",
        "no_kernel_setting_can_be_written",
        "proc_kcore_is_masked",
        "no_cgroup_file_is_in_reach",
        "make_a_disk",
        "raise_a_limit",
        "only_its_own_interfaces_are_there",
        "climbing_out_of_a_chroot_ends_at_its_own_root",
    ]);
    assert!(findings.count() >= 95, "the probe ended early: {} findings", findings.count());

    for set in ["status_CapPrm", "status_CapEff", "status_CapBnd"] {
        assert_eq!(hexadecimal(&findings, set), caps::kept_set().bits(), "{set}");
    }
    for set in ["status_CapInh", "status_CapAmb"] {
        assert_eq!(hexadecimal(&findings, set), 0, "{set}");
    }
    assert_eq!(findings.detail("status_Seccomp"), "2", "a filter is in place");
    assert_eq!(findings.detail("status_Seccomp_filters"), "1");
    assert_eq!(findings.detail("status_NoNewPrivs"), "0", "sudo could not work otherwise");

    // What guards the agent against faults sent to it must not be inherited by what it starts.
    let faults = 1 << (libc::SIGSEGV - 1) | 1 << (libc::SIGBUS - 1);
    assert_eq!(hexadecimal(&findings, "status_SigBlk"), 0);
    assert_eq!(hexadecimal(&findings, "status_SigIgn") & faults, 0);

    // Every signal was sent to it, and it still serves.
    fixture.ping(&sandbox).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_is_nobody_outside() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.create().await, fixture.create().await);
    install(&fixture, &one).await;
    let findings = probe(&fixture, &one, &["root", "/nowhere", "/nowhere", "1", "x"]).await;
    let map: Vec<u64> = findings.detail("uid_map").split_whitespace().map(|part| part.parse().unwrap()).collect();
    let [inside, outside, count] = map[..] else { panic!("{map:?}") };
    assert_eq!(inside, 0);
    assert!(outside >= 65_536 && count >= 65_535, "{map:?}");
    let uid = |id| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", host_pid(fixture.data.path(), id))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(uid(one.id), outside);
    assert!(uid(other.id).abs_diff(outside) >= count, "the ranges of two sandboxes overlap");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_user_has_no_capability_and_may_become_root_only_by_sudo() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let sandbox = fixture.create().await;
    install(&fixture, &sandbox).await;
    let findings = probe_as(&fixture, &sandbox, "user", &["user"]).await;
    findings.all_hold_but(&VALUES);
    findings.include(&["it_is_not_root", "the_agent_was_sent_every_signal", "give_a_file_to_root", "new_user_namespace"]);
    fixture.ping(&sandbox).await.unwrap();
    for set in ["status_CapPrm", "status_CapEff", "status_CapInh", "status_CapAmb"] {
        assert_eq!(hexadecimal(&findings, set), 0, "{set}");
    }
    assert_eq!(hexadecimal(&findings, "status_CapBnd"), caps::kept_set().bits());
    assert_eq!(findings.detail("status_Seccomp"), "2");

    if std::path::Path::new("/usr/bin/sudo").exists() {
        let output = probe::run_as(&fixture, &sandbox, "user", &["sudo", "-n", "id", "-u"]).await;
        assert_eq!(output.stdout.trim(), "0", "{output:?}");
    } else {
        eprintln!("skipped: this host has no sudo to try inside");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sandboxes_do_not_see_each_other() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.create().await, fixture.create().await);
    install(&fixture, &one).await;
    install(&fixture, &other).await;
    let _serving = serve(&fixture, &one).await;
    let same = probe(&fixture, &one, &["look"]).await;
    assert_eq!(same.count(), 8);
    // The control: what there is to find is found where it is.
    same.all_hold_but(&[]);
    probe(&fixture, &other, &["look"]).await.none_holds();
}
