//! File operations.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use sandbank_agent_protocol::{
    ErrorKind, FileKind, ListFiles, MakeDir, MoveFile, OpenMode, ReadFile, RemoveFile, Reply, Request, StatFile, WriteFile,
};
use support::*;

fn reading(path: &str) -> ReadFile {
    ReadFile { path: path.into(), user: None, offset: 0, length: None }
}

fn writing(path: &str) -> WriteFile {
    WriteFile { path: path.into(), user: None, mode: None, open: OpenMode::Replace }
}

fn stat(path: &str, follow: bool) -> Request {
    Request::Stat(StatFile { path: path.into(), user: None, follow })
}

fn listing(path: &str, depth: u32) -> ListFiles {
    ListFiles { path: path.into(), user: None, depth, limit: 100_000 }
}

fn removing(path: &str, recursive: bool) -> Request {
    Request::Remove(RemoveFile { path: path.into(), user: None, recursive })
}

fn moving(from: &str, to: &str, overwrite: bool) -> Request {
    Request::Move(MoveFile { from: from.into(), to: to.into(), user: None, overwrite })
}

fn making(path: &str, mode: Option<u32>, exclusive: bool) -> Request {
    Request::MakeDir(MakeDir { path: path.into(), user: None, mode, exclusive })
}

fn mode_of(path: &str) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

#[tokio::test]
async fn what_is_written_is_read_back_with_its_metadata() {
    let agent = TestAgent::start().await;
    let path = agent.path("made/on/the/way/file");
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 253) as u8).collect();
    let written = agent.write(writing(&path), content.clone()).await.unwrap();
    assert_eq!(
        (written.path.as_str(), written.kind, written.size, written.mode),
        (path.as_str(), FileKind::File, 3_000_000, 0o644)
    );
    let (stat, read) = agent.read(reading(&path)).await.unwrap();
    assert_eq!(stat, written);
    assert!(read == content);
    let part = ReadFile { offset: 1_000_000, length: Some(1000), ..reading(&path) };
    assert!(agent.read(part).await.unwrap().1 == content[1_000_000..1_001_000]);
    let beyond = ReadFile { offset: u64::MAX, length: Some(1), ..reading(&path) };
    assert!(agent.read(beyond).await.map_or(true, |(_, content)| content.is_empty()));
    assert_eq!(agent.read(ReadFile { length: Some(0), ..reading(&path) }).await.unwrap().1, b"");
}

#[tokio::test]
async fn files_without_a_size_are_read_to_their_end() {
    let agent = TestAgent::start().await;
    let (stat, content) = agent.read(reading("/proc/version")).await.unwrap();
    assert_eq!(stat.size, 0);
    assert!(content.starts_with(b"Linux"));
}

#[tokio::test]
async fn a_replaced_file_keeps_its_mode_unless_told() {
    let agent = TestAgent::start().await;
    let path = agent.path("script");
    std::fs::write(&path, "old").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o751)).unwrap();
    agent.write(writing(&path), "new").await.unwrap();
    assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), mode_of(&path)), ("new", 0o751));
    agent.write(WriteFile { mode: Some(0o600), ..writing(&path) }, "").await.unwrap();
    assert_eq!((std::fs::read(&path).unwrap().len(), mode_of(&path)), (0, 0o600));
}

#[tokio::test]
async fn appending_adds_and_creating_refuses_what_exists() {
    let agent = TestAgent::start().await;
    let path = agent.path("log");
    let append = WriteFile { open: OpenMode::Append, ..writing(&path) };
    agent.write(append.clone(), "one").await.unwrap();
    assert_eq!(agent.write(append, "two").await.unwrap().size, 6);
    let create = WriteFile { open: OpenMode::CreateNew, ..writing(&path) };
    assert_kind(agent.write(create.clone(), "x").await, ErrorKind::Exists, "exists already");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "onetwo");
    let fresh = WriteFile { path: agent.path("fresh"), ..create };
    assert_eq!(agent.write(fresh, "x").await.unwrap().size, 1);
}

#[tokio::test]
async fn a_cancelled_write_leaves_the_old_file_and_nothing_else() {
    let agent = TestAgent::start().await;
    let path = agent.path("dir/kept");
    agent.write(writing(&path), "old").await.unwrap();
    let mut connection = agent.begin(&Request::Write(writing(&path))).await;
    connection.send_data(vec![b'n'; 2_000_000].into()).await.unwrap();
    let dir = agent.path("dir");
    let names = || std::fs::read_dir(&dir).unwrap().count();
    eventually("data is on its way", || names() == 2).await;
    drop(connection);
    eventually("the temporary file is gone", || names() == 1).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
}

#[tokio::test]
async fn writing_through_a_symbolic_link_changes_its_target() {
    let agent = TestAgent::start().await;
    let (target, link) = (agent.path("target"), agent.path("link"));
    std::fs::write(&target, "old").unwrap();
    symlink("target", &link).unwrap();
    agent.write(writing(&link), "new").await.unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "new");
    symlink("loop", agent.path("loop")).unwrap();
    assert!(agent.write(writing(&agent.path("loop")), "x").await.is_err());
}

#[tokio::test]
async fn pipes_devices_and_directories_are_neither_read_nor_written() {
    let agent = TestAgent::start().await;
    let fifo = agent.path("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &*fifo, rustix::fs::Mode::from_raw_mode(0o666)).unwrap();
    for path in [fifo.as_str(), "/dev/zero", "/dev/tty", "/etc"] {
        let read = agent.read(reading(path)).await;
        assert_kind(read, ErrorKind::WrongKind, path);
        let append = WriteFile { open: OpenMode::Append, ..writing(path) };
        assert_kind(agent.write(append, "x").await, ErrorKind::WrongKind, path);
        assert_kind(agent.write(writing(path), "x").await, ErrorKind::WrongKind, path);
    }
    assert_kind(agent.list(listing(&fifo, 1)).await, ErrorKind::WrongKind, "fifo");
}

#[tokio::test]
async fn paths_that_make_no_sense_are_refused() {
    let agent = TestAgent::start().await;
    for path in ["", "a\0b"] {
        assert_kind(agent.read(reading(path)).await, ErrorKind::Invalid, "path");
        assert_kind(agent.ask(&stat(path, true)).await, ErrorKind::Invalid, "path");
        assert_kind(agent.ask(&removing(path, true)).await, ErrorKind::Invalid, "path");
    }
    let long = format!("/{}", "x".repeat(5000));
    assert_kind(agent.ask(&stat(&long, true)).await, ErrorKind::Invalid, "too long");
    assert_kind(agent.ask(&stat("/no/such/file", true)).await, ErrorKind::NotFound, "/no/such/file");
    assert_kind(agent.read(reading("/no/such/file")).await, ErrorKind::NotFound, "/no/such/file");
    assert_kind(agent.read(reading("/etc/passwd/x")).await, ErrorKind::WrongKind, "/etc/passwd/x");
}

#[tokio::test]
async fn a_link_is_described_or_followed_and_relative_paths_begin_at_home() {
    let agent = TestAgent::start().await;
    let link = agent.path("link");
    symlink("/etc/passwd", &link).unwrap();
    let Ok(Reply::Stat(itself)) = agent.ask(&stat(&link, false)).await else { panic!("expected Stat") };
    assert_eq!((itself.kind, itself.symlink_target.as_deref()), (FileKind::Symlink, Some("/etc/passwd")));
    let Ok(Reply::Stat(target)) = agent.ask(&stat(&link, true)).await else { panic!("expected Stat") };
    assert_eq!((target.kind, target.owner.as_str(), target.group.as_str()), (FileKind::File, "root", "root"));
    assert!(target.modified_at_ms > 0);
    let Ok(Reply::Stat(home)) = agent.ask(&stat(".", true)).await else { panic!("expected Stat") };
    assert_eq!(home.kind, FileKind::Dir);
    assert!(home.path.starts_with('/'));
}

#[tokio::test]
async fn a_listing_is_sorted_and_as_deep_as_asked_for() {
    let agent = TestAgent::start().await;
    let top = agent.path("tree");
    for dir in ["b/inner/deep", "a"] {
        std::fs::create_dir_all(format!("{top}/{dir}")).unwrap();
    }
    std::fs::write(format!("{top}/b/file"), "x").unwrap();
    std::fs::write(format!("{top}/c"), "xy").unwrap();
    symlink("..", format!("{top}/a/up")).unwrap();
    let names = |entries: Vec<sandbank_agent_protocol::FileStat>| -> Vec<String> {
        entries.into_iter().map(|entry| entry.path[top.len() + 1..].to_owned()).collect()
    };
    assert_eq!(names(agent.list(listing(&top, 1)).await.unwrap()), ["a", "b", "c"]);
    assert_eq!(names(agent.list(listing(&top, 2)).await.unwrap()), ["a", "a/up", "b", "b/file", "b/inner", "c"]);
    let all = ["a", "a/up", "b", "b/file", "b/inner", "b/inner/deep", "c"];
    assert_eq!(names(agent.list(listing(&top, u32::MAX)).await.unwrap()), all);
    let limited = ListFiles { limit: 3, ..listing(&top, 9) };
    assert_eq!(names(agent.list(limited).await.unwrap()), all[..3]);
    assert_kind(agent.list(listing(&top, 0)).await, ErrorKind::Invalid, "depth");
    assert_kind(agent.list(listing("/no/such/dir", 1)).await, ErrorKind::NotFound, "/no/such/dir");
}

#[tokio::test]
async fn ten_thousand_entries_are_listed_and_removed() {
    let agent = TestAgent::start().await;
    // Memory makes ten thousand files faster than a disk does.
    let dir = tempfile::TempDir::new_in("/dev/shm").unwrap_or_else(|_| tempfile::TempDir::new().unwrap());
    let top = format!("{}/many", dir.path().display());
    std::fs::create_dir(&top).unwrap();
    for n in 0..10_000 {
        std::fs::write(format!("{top}/{n:05}-{}", "é".repeat(60)), "").unwrap();
    }
    let entries = agent.list(listing(&top, 1)).await.unwrap();
    assert_eq!(entries.len(), 10_000);
    assert!(entries.is_sorted_by_key(|entry| entry.path.clone()));
    assert_eq!(agent.ask(&removing(&top, true)).await, Ok(Reply::Done));
    assert!(!exists(&top));
}

#[tokio::test]
async fn removal_takes_trees_only_when_told_and_never_follows_links() {
    let agent = TestAgent::start().await;
    let (top, outside) = (agent.path("tree"), agent.path("outside"));
    std::fs::create_dir_all(format!("{top}/a/b/c")).unwrap();
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(format!("{outside}/kept"), "x").unwrap();
    symlink(&outside, format!("{top}/a/link")).unwrap();
    std::fs::write(format!("{top}/a/b/file"), "x").unwrap();
    assert_kind(agent.ask(&removing(&top, false)).await, ErrorKind::WrongKind, "not empty");
    assert_eq!(agent.ask(&removing(&top, true)).await, Ok(Reply::Done));
    assert!(!exists(&top) && exists(&format!("{outside}/kept")));
    let link = agent.path("link");
    symlink(&outside, &link).unwrap();
    assert_eq!(agent.ask(&removing(&link, true)).await, Ok(Reply::Done));
    assert!(!exists(&link) && exists(&outside));
    for root in ["/", "//", "/..", "/./", "/proc/.."] {
        assert_kind(agent.ask(&removing(root, true)).await, ErrorKind::Invalid, "root");
    }
    assert_kind(agent.ask(&removing(&link, true)).await, ErrorKind::NotFound, "link");
}

#[tokio::test]
async fn a_tree_deeper_than_any_path_is_removed() {
    let agent = TestAgent::start().await;
    let top = agent.path("deep");
    let name = "d".repeat(200);
    let script =
        format!("mkdir '{top}' && cd '{top}' && for i in $(seq 50); do mkdir {name} && cd -P {name} && : > file || exit 1; done");
    assert_eq!(agent.shell(&script).await.code(), 0);
    assert_eq!(agent.ask(&removing(&top, true)).await, Ok(Reply::Done));
    assert!(!exists(&top));
}

#[tokio::test]
async fn moving_replaces_only_when_told() {
    let agent = TestAgent::start().await;
    let (from, to) = (agent.path("from"), agent.path("new/dir/to"));
    std::fs::write(&from, "x").unwrap();
    let Ok(Reply::Stat(moved)) = agent.ask(&moving(&from, &to, false)).await else { panic!("expected Stat") };
    assert_eq!(moved.path, to);
    std::fs::write(&from, "y").unwrap();
    assert_kind(agent.ask(&moving(&from, &to, false)).await, ErrorKind::Exists, "to");
    assert!(agent.ask(&moving(&from, &to, true)).await.is_ok());
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "y");
    assert_kind(agent.ask(&moving(&from, &to, true)).await, ErrorKind::NotFound, "from");
    let inside = agent.path("new/dir/inside");
    assert_kind(agent.ask(&moving(&agent.path("new"), &inside, false)).await, ErrorKind::Invalid, "new");
}

#[tokio::test]
async fn a_tree_moves_across_file_systems() {
    let agent = TestAgent::start().await;
    let shm = match tempfile::TempDir::new_in("/dev/shm") {
        Ok(dir) if std::fs::metadata(dir.path()).unwrap().dev() != std::fs::metadata(agent.dir.path()).unwrap().dev() => dir,
        _ => return skipped("/dev/shm is not another file system"),
    };
    let (from, to) = (agent.path("tree"), format!("{}/tree", shm.path().display()));
    std::fs::create_dir_all(format!("{from}/a/b")).unwrap();
    std::fs::write(format!("{from}/a/big"), vec![1; 3_000_000]).unwrap();
    std::fs::set_permissions(format!("{from}/a/big"), PermissionsExt::from_mode(0o740)).unwrap();
    std::fs::set_permissions(format!("{from}/a/b"), PermissionsExt::from_mode(0o700)).unwrap();
    symlink("big", format!("{from}/a/link")).unwrap();
    let modified = std::fs::metadata(format!("{from}/a/big")).unwrap().modified().unwrap();
    assert!(agent.ask(&moving(&from, &to, false)).await.is_ok());
    assert!(!exists(&from));
    assert_eq!((std::fs::read(format!("{to}/a/link")).unwrap().len(), mode_of(&format!("{to}/a/big"))), (3_000_000, 0o740));
    assert_eq!(mode_of(&format!("{to}/a/b")), 0o700);
    assert_eq!(std::fs::metadata(format!("{to}/a/big")).unwrap().modified().unwrap(), modified);
    std::fs::write(&from, "again").unwrap();
    assert_kind(agent.ask(&moving(&from, &to, false)).await, ErrorKind::Exists, "tree");
    assert_eq!(std::fs::read_dir(shm.path()).unwrap().count(), 1, "no copy is left behind");
    let single = format!("{}/single", shm.path().display());
    assert!(agent.ask(&moving(&from, &single, false)).await.is_ok());
    assert_eq!(std::fs::read_to_string(&single).unwrap(), "again");
}

#[tokio::test]
async fn directories_are_made_with_their_parents() {
    let agent = TestAgent::start().await;
    let path = agent.path("x/y/z");
    let Ok(Reply::Stat(made)) = agent.ask(&making(&path, Some(0o1777), true)).await else { panic!("expected Stat") };
    assert_eq!((made.kind, made.mode), (FileKind::Dir, 0o1777));
    assert_eq!(mode_of(&agent.path("x/y")), 0o755);
    assert!(agent.ask(&making(&path, None, false)).await.is_ok());
    assert_kind(agent.ask(&making(&path, None, true)).await, ErrorKind::Exists, "exists already");
    std::fs::write(agent.path("file"), "").unwrap();
    assert_kind(agent.ask(&making(&agent.path("file"), None, false)).await, ErrorKind::WrongKind, "file");
    assert_kind(agent.ask(&making(&agent.path("file/below"), None, false)).await, ErrorKind::WrongKind, "file");
}
