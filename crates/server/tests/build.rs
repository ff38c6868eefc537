//! `sandbank build` from end to end, with real sandboxes of the host image.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::{Server, can_run, wait_for};

fn put(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

const DOCKERFILE: &str = "\
ARG BASE=host
FROM $BASE AS maker
WORKDIR /work
COPY src/ ./src
RUN cat src/*.txt src/link > joined && echo made by $(id -un)
FROM host
ARG WHO=nobody
ENV GREETING=\"hello $WHO\"
WORKDIR /home/user/app
COPY --chown=user --chmod=640 src/a.txt .
COPY --from=maker /work/joined /work/src/sub /home/user/app/in/
RUN echo \"$GREETING\" > greeting && ls
USER user
RUN id -un > /home/user/who
CMD [\"cat\", \"greeting\"]
";

#[test]
fn a_dockerfile_becomes_an_image_and_the_second_time_from_the_cache() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().to_str().unwrap();
    put(dir.path(), "Dockerfile", DOCKERFILE);
    put(dir.path(), "src/a.txt", "alpha\n");
    put(dir.path(), "src/b.txt", "beta\n");
    put(dir.path(), "src/sub/tool", "#!/bin/sh\necho tool\n");
    std::fs::set_permissions(dir.path().join("src/sub/tool"), <std::fs::Permissions as PermissionsExt>::from_mode(0o755))
        .unwrap();
    std::os::unix::fs::symlink("a.txt", dir.path().join("src/link")).unwrap();
    put(dir.path(), "secret.env", "no\n");
    put(dir.path(), ".dockerignore", "*.env\n");
    let built = server.words(&["build", "-t", "app:1", "--build-arg", "WHO=you", top]);
    assert_eq!(built.clone().ok(), "app:1\n");
    assert!(built.stderr.contains("made by root"), "{}", built.stderr);
    let run = |image: &str, script: &str| server.words(&["run", "--image", image, "--", "sh", "-c", script]).ok();
    assert_eq!(run("app:1", "cat greeting /home/user/who; pwd; id -un"), "hello you\nuser\n/home/user/app\nuser\n");
    assert_eq!(run("app:1", "cat in/joined && in/tool"), "alpha\nbeta\nalpha\ntool\n");
    assert_eq!(run("app:1", "stat -c '%U %G %a' a.txt; stat -c '%U %a' in/tool"), "user user 640\nroot 755\n");
    let again = server.words(&["build", "-t", "app:2", "--build-arg", "WHO=you", top]);
    assert!(again.stderr.contains("8 of 12 steps came from the cache"), "{}", again.stderr);
    assert_eq!(run("app:2", "cat greeting"), "hello you\n");
    put(dir.path(), "src/b.txt", "other\n");
    let changed = server.words(&["build", "-t", "app:3", "--build-arg", "WHO=you", top]);
    assert_eq!(changed.ok(), "app:3\n");
    assert_eq!(run("app:3", "cat in/joined"), "alpha\nother\nalpha\n");
    server.finish();
}

#[test]
fn what_fails_says_where_and_leaves_no_sandbox() {
    if !can_run() {
        return;
    }
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().to_str().unwrap();
    put(dir.path(), "Dockerfile", "FROM host\nRUN true\nRUN echo the reason >&2; exit 3\n");
    let failed = server.words(&["build", "-t", "app", top]).fails(1);
    assert!(failed.contains("step 2") && failed.contains("code 3") && failed.contains("the reason"), "{failed}");
    put(dir.path(), "other", "FROM host\n\nADD x /x\n");
    let other = dir.path().join("other");
    let refused = server.words(&["build", "-t", "app", "-f", other.to_str().unwrap(), top]).fails(1);
    assert!(refused.contains("line 3") && refused.contains("ADD"), "{refused}");
    put(dir.path(), "other", "FROM host\nCOPY absent /x\n");
    let refused = server.words(&["build", "-t", "app", "-f", other.to_str().unwrap(), top]).fails(1);
    assert!(refused.contains("absent"), "{refused}");
    wait_for("no sandbox", || (server.json("ps")["total"] == 0).then_some(()));
    server.finish();
}

/// A server that ends by `end` in the middle of a build leaves nothing of it, and the next build goes on from the cache.
fn interrupted(end: impl FnOnce(&mut Server)) {
    if !can_run() {
        return;
    }
    let mut server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().to_str().unwrap();
    put(dir.path(), "Dockerfile", "FROM host\nRUN echo first > /first\nRUN sleep 300\n");
    let mut client = server.command(["build", "-t", "app", top]).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for("the second step to run", || {
        let listed = server.json("ps");
        let id = listed["items"].as_array()?.first()?["sandboxId"].as_str()?.to_owned();
        let inside = server.words(&["exec", &id, "--", "sh", "-c", "cat /first; ps -e"]);
        (inside.code == 0 && inside.stdout.contains("first") && inside.stdout.contains("sleep")).then_some(())
    });
    end(&mut server);
    server.start_again();
    assert!(!client.wait().unwrap().success());
    wait_for("no sandbox", || (server.json("ps")["total"] == 0 && server.on_disk().is_empty()).then_some(()));
    put(dir.path(), "Dockerfile", "FROM host\nRUN echo first > /first\nRUN cat /first > /second\n");
    let again = server.words(&["build", "-t", "app", top]);
    assert!(again.stderr.contains("1 of 2 steps came from the cache"), "{again:?}");
    assert_eq!(server.words(&["run", "--image", "app", "--", "cat", "/second"]).ok(), "first\n");
    server.finish();
}

#[test]
fn a_server_that_is_killed_in_a_build_leaves_nothing_of_it() {
    interrupted(Server::kill);
}

#[test]
fn a_server_that_is_told_to_stop_in_a_build_leaves_nothing_of_it() {
    interrupted(|server| assert_eq!(server.terminate(), 0));
}
