//! Starting: what is refused, in which words, and how secrets are kept.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use support::{Ended, Server, can_run, sandbank, wait_for};

fn serve(arguments: &[&str]) -> Ended {
    sandbank().arg("serve").args(arguments).output().expect("it starts").into()
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    std::fs::write(&config, "listen = \"127.0.0.1:0\"\n[limits]\nwaiting_claim_max = 3\n").unwrap();
    let refused = serve(&["--config", config.to_str().unwrap(), "--data-dir", dir.path().to_str().unwrap()]).fails(1);
    assert!(refused.contains("waiting_claim_max") && refused.contains("line 3"), "{refused}");
    assert_eq!(refused.lines().count(), 1, "{refused}");
}

#[test]
fn a_configuration_that_is_not_there_is_told() {
    let refused = serve(&["--config", "/nowhere/sandbank.toml"]).fails(1);
    assert!(refused.contains("/nowhere/sandbank.toml"), "{refused}");
}

#[test]
fn an_address_that_is_none_is_wrong_usage() {
    for wrong in ["nowhere", "127.0.0.1", "127.0.0.1:99999", ":7070"] {
        let refused = serve(&["--listen", wrong, "--data-dir", "/tmp/never-made"]).fails(2);
        assert!(refused.contains(wrong) && refused.contains("IP:PORT"), "{refused}");
    }
}

#[test]
fn an_admin_key_that_is_none_is_refused_and_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let ended: Ended = sandbank()
        .args(["serve", "--data-dir"])
        .arg(dir.path())
        .env("SANDBANK_ADMIN_KEY", "correct-horse-battery")
        .output()
        .unwrap()
        .into();
    let refused = ended.fails(1);
    assert!(refused.contains("SANDBANK_ADMIN_KEY") && !refused.contains("battery"), "{refused}");
}

#[test]
fn a_port_in_use_is_told_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = dir.path().join("data");
    let refused = serve(&["--listen", &address, "--data-dir", data.to_str().unwrap()]).fails(1);
    assert!(refused.contains(&address) && refused.contains("--listen"), "{refused}");
    assert!(!data.join("sandboxes").exists() && !data.join("server.json").exists());
}

#[test]
fn a_data_directory_in_use_names_its_owner() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    let data = server.data();
    let refused = serve(&["--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()]).fails(1);
    assert!(refused.contains(&format!("already in use by pid {}", server.pid())), "{refused}");
    // The refused one has taken nothing down.
    server.cli("ps").ok();
    server.finish();
}

#[test]
fn a_first_start_makes_a_key_shows_it_once_and_keeps_it_private() {
    if !can_run() {
        return;
    }
    let mut server = Server::start();
    let key = server.key();
    assert!(key.starts_with("agbx_") && key.len() == 5 + 64, "the key's form");
    assert!(server.log().contains(&key), "the first start shows the key");
    let mode = |name: &str| std::fs::metadata(server.data().join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("."), mode("admin.key"), mode("server.json")), (0o700, 0o600, 0o600));
    let shown = server.log().len();
    assert_eq!(server.terminate(), 0);
    assert!(!server.data().join("server.json").exists(), "a server that ended is not found");
    server.start_again();
    assert_eq!(server.key(), key);
    assert!(!server.log()[shown..].contains(&key), "a later start does not show it");
    server.finish();
}

#[test]
fn a_secret_key_that_is_none_is_refused_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let start = |variables: &[(&str, &str)], more: &[&str]| -> Ended {
        let mut command = sandbank();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data).args(more);
        command.envs(variables.iter().copied()).output().unwrap().into()
    };
    let refused = start(&[("SANDBANK_SECRET_KEY", "correct horse battery")], &[]).fails(1);
    assert!(refused.contains("SANDBANK_SECRET_KEY") && !refused.contains("battery"), "{refused}");
    let config = dir.path().join("c.toml");
    let file = dir.path().join("key");
    std::fs::write(&config, format!("secret_key_file = {file:?}\n")).unwrap();
    let config = ["--config", config.to_str().unwrap()];
    let refused = start(&[], &config).fails(1);
    assert!(refused.contains("secret_key_file") && refused.contains(file.to_str().unwrap()), "{refused}");
    std::fs::write(&file, "battery").unwrap();
    let refused = start(&[], &config).fails(1);
    assert!(refused.contains(file.to_str().unwrap()) && !refused.contains("battery"), "{refused}");
    assert!(!data.join("secret.key").exists(), "a key that was chosen elsewhere is not made here");
}

#[test]
fn client_commands_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], variables: &[(&str, &str)]| -> Ended {
        sandbank().args(arguments).envs(variables.iter().copied()).output().unwrap().into()
    };
    let data = dir.path().to_str().unwrap();
    let refused = run(&["ps", "--data-dir", data], &[]).fails(1);
    assert!(refused.contains("no server is running") && refused.contains("sandbank up"), "{refused}");
    let refused = run(&["ps"], &[("SANDBANK_URL", "http://127.0.0.1:9")]).fails(1);
    assert!(refused.contains("SANDBANK_KEY"), "{refused}");
    let both = [("SANDBANK_URL", "http://127.0.0.1:9"), ("SANDBANK_KEY", "agbx_x")];
    let refused = run(&["ps"], &both).fails(1);
    assert!(refused.contains("cannot reach the server at http://127.0.0.1:9"), "{refused}");
    // run and exec keep 1 and 2 for the program.
    run(&["run", "base", "--", "true"], &both).fails(125);
    run(&["exec", "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071", "--", "true"], &both).fails(125);
    let refused = run(&["env", "klingon", "--data-dir", data], &[]).fails(2);
    assert!(refused.contains("klingon") && refused.contains("native"), "{refused}");
}

#[test]
fn help_is_there_for_every_command() {
    let help = Ended::from(sandbank().arg("--help").output().unwrap()).ok();
    assert!(help.contains("sandbank up") && !help.contains("launcher"), "{help}");
    for command in
        ["serve", "up", "run", "exec", "cp", "pool create", "key create", "image import", "registry login", "events", "doctor"]
    {
        let words = command.split(' ').chain(["--help"]);
        let help = Ended::from(sandbank().args(words).output().unwrap()).ok();
        assert!(help.contains("Usage: sandbank"), "{command}: {help}");
    }
}

#[test]
fn a_database_of_a_newer_sandbank_is_refused() {
    if !can_run() {
        return;
    }
    let mut server = Server::start();
    assert_eq!(server.terminate(), 0);
    let database = server.data().join("sandbank.db");
    // user_version of the file format: bytes 60 to 63, big-endian (sqlite.org/fileformat.html §1.3).
    let mut bytes = std::fs::read(&database).unwrap();
    let before = bytes.clone();
    bytes[60..64].copy_from_slice(&9999u32.to_be_bytes());
    std::fs::write(&database, &bytes).unwrap();
    let data = server.data();
    let refused = serve(&["--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()]).fails(1);
    assert!(refused.contains("9999") && refused.contains("newer"), "{refused}");
    std::fs::write(&database, &before).unwrap();
    server.start_again();
    server.finish();
}

#[test]
fn up_makes_the_pool_and_says_what_to_do_next() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let out = std::fs::File::create(dir.path().join("out")).unwrap();
    let mut child = sandbank()
        .args(["up", "--demo", "--replicas", "2", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&data)
        .stdout(out)
        .stderr(std::fs::File::create(dir.path().join("err")).unwrap())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(dir.path().join("out")).unwrap();
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("the next steps", || said().contains("Ctrl-C").then_some(()));
        let text = said();
        for expected in
            ["Pool \"base\" has", "claimed a sandbox", "my pid is", "ran it as uid", "sandbank env native", "run base"]
        {
            assert!(text.contains(expected), "{expected:?} is missing: {text}");
        }
        // The sandboxes have this machine's programs, and a freshly installed one has a shell but no Python.
        assert!(!text.to_lowercase().contains("python"), "{text}");
        let client =
            |line: &str| -> Ended { sandbank().args(line.split(' ')).env("SANDBANK_DATA_DIR", &data).output().unwrap().into() };
        assert_eq!(client("run base -- echo hello").ok(), "hello\n");
        client("pool delete base").ok();
        wait_for("the sandboxes to be gone", || support::names(&data.join("sandboxes")).is_empty().then_some(()));
    }));
    support::send(child.id(), rustix::process::Signal::INT);
    let status = child.wait().unwrap();
    if let Err(panic) = ended {
        eprintln!("{}", std::fs::read_to_string(dir.path().join("err")).unwrap());
        std::panic::resume_unwind(panic);
    }
    assert_eq!(status.code(), Some(0));
    assert!(support::remains(&data).is_empty(), "{:?}", support::remains(&data));
    support::remove_cgroups(&data);
}

#[test]
fn a_data_directory_that_others_could_read_is_closed() {
    if !can_run() {
        return;
    }
    let mut server = Server::start();
    assert_eq!(server.terminate(), 0);
    std::fs::set_permissions(server.data(), std::fs::Permissions::from_mode(0o755)).unwrap();
    server.start_again();
    assert_eq!(std::fs::metadata(server.data()).unwrap().mode() & 0o777, 0o700);
    server.finish();
}
