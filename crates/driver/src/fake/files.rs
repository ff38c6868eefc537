//! The fake sandbox's files: a map from absolute path to node.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sandbank_agent_protocol::{
    AgentError, ErrorKind, FileKind, FileStat, ListFiles, MakeDir, MoveFile, OpenMode, RemoveFile, WatchEventKind, WriteFile,
};

/// Most bytes that a fake file may hold; a longer write answers `Exhausted` as a full disk does.
const FILE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A change that watchers are told of.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) path: String,
    pub(super) kind: WatchEventKind,
    pub(super) is_dir: bool,
}

impl Change {
    fn new(path: &str, kind: WatchEventKind, is_dir: bool) -> Self {
        Self { path: path.to_owned(), kind, is_dir }
    }
}

#[derive(Debug, Clone)]
struct Node {
    /// `None` is a directory.
    content: Option<Bytes>,
    mode: u32,
    user: User,
    modified_at_ms: i64,
}

/// A user that the fake's `/etc/passwd` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: &'static str,
    pub(super) uid: u32,
    pub(super) home: &'static str,
}

const ROOT: User = User { name: "root", uid: 0, home: "/root" };
const USER: User = User { name: "user", uid: 1000, home: "/home/user" };

impl User {
    /// By name or number, optionally `:group`; `None` is root.
    pub(super) fn find(name: Option<&str>) -> Result<Self, AgentError> {
        match name.map(|name| name.split_once(':').map_or(name, |(user, _)| user)) {
            None | Some("root" | "0") => Ok(ROOT),
            Some("user" | "1000") => Ok(USER),
            Some(other) => Err(AgentError::new(ErrorKind::NotFound, format!("there is no user {other:?}"))),
        }
    }
}

/// A whole file system.
#[derive(Debug, Clone)]
pub(super) struct FileTree {
    nodes: BTreeMap<String, Node>,
}

impl FileTree {
    /// What every fake sandbox begins with.
    pub(super) fn fresh() -> Self {
        let mut tree = Self { nodes: BTreeMap::new() };
        for (path, user) in [("/", ROOT), ("/etc", ROOT), ("/home", ROOT), ("/home/user", USER), ("/root", ROOT), ("/tmp", ROOT)]
        {
            tree.insert_dir(path, 0o755, user);
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n";
        tree.insert_file("/etc/passwd", Bytes::from_static(passwd.as_bytes()), 0o644, ROOT);
        tree
    }

    fn insert_dir(&mut self, path: &str, mode: u32, user: User) {
        self.nodes.insert(path.to_owned(), Node { content: None, mode, user, modified_at_ms: now_ms() });
    }

    fn insert_file(&mut self, path: &str, content: Bytes, mode: u32, user: User) {
        self.nodes.insert(path.to_owned(), Node { content: Some(content), mode, user, modified_at_ms: now_ms() });
    }

    /// Bytes in all files.
    pub(super) fn size_bytes(&self) -> u64 {
        self.nodes.values().filter_map(|node| node.content.as_ref()).map(|content| content.len() as u64).sum()
    }

    fn node(&self, path: &str) -> Result<&Node, AgentError> {
        if let Some(node) = self.nodes.get(path) {
            return Ok(node);
        }
        let under_file = ancestors(path).any(|dir| self.nodes.get(dir).is_some_and(|node| node.content.is_some()));
        Err(if under_file { error(ErrorKind::WrongKind, path, "not a directory") } else { missing(path) })
    }

    /// Metadata.
    pub(super) fn stat(&self, path: &str, user: Option<&str>) -> Result<FileStat, AgentError> {
        let path = resolve(path, User::find(user)?)?;
        Ok(stat_of(&path, self.node(&path)?))
    }

    /// Entries below a directory, by path.
    pub(super) fn list(&self, request: &ListFiles) -> Result<Vec<FileStat>, AgentError> {
        let dir = resolve(&request.path, User::find(request.user.as_deref())?)?;
        if self.node(&dir)?.content.is_some() {
            return Err(error(ErrorKind::WrongKind, &dir, "not a directory"));
        }
        let depth = request.depth.max(1) as usize;
        let below = self.nodes.iter().filter(|(path, _)| depth_below(&dir, path).is_some_and(|at| at <= depth));
        Ok(below.take(request.limit as usize).map(|(path, node)| stat_of(path, node)).collect())
    }

    /// Metadata and content.
    pub(super) fn read(&self, path: &str, user: Option<&str>) -> Result<(FileStat, Bytes), AgentError> {
        let path = resolve(path, User::find(user)?)?;
        let node = self.node(&path)?;
        let content = node.content.clone().ok_or_else(|| error(ErrorKind::WrongKind, &path, "is a directory"))?;
        Ok((stat_of(&path, node), content))
    }

    /// Refuses what `write` would refuse before any data has come.
    pub(super) fn check_write(&self, request: &WriteFile) -> Result<String, AgentError> {
        let path = resolve(&request.path, User::find(request.user.as_deref())?)?;
        match self.node(&path) {
            Ok(node) if node.content.is_none() => Err(error(ErrorKind::WrongKind, &path, "is a directory")),
            Ok(_) if request.open == OpenMode::CreateNew => Err(error(ErrorKind::Exists, &path, "it exists already")),
            Err(wrong) if wrong.kind != ErrorKind::NotFound => Err(wrong),
            _ => Ok(path),
        }
    }

    /// Writes a file.
    pub(super) fn write(&mut self, request: &WriteFile, data: &[u8]) -> Result<(FileStat, Vec<Change>), AgentError> {
        let path = self.check_write(request)?;
        let user = User::find(request.user.as_deref())?;
        let mut changes = self.make_parents(&path, user)?;
        let old = self.nodes.get(&path).cloned();
        let mut content = match (&old, request.open) {
            (Some(Node { content: Some(before), .. }), OpenMode::Append) => before.to_vec(),
            _ => Vec::new(),
        };
        if content.len().saturating_add(data.len()) > FILE_BYTES_MAX {
            return Err(error(ErrorKind::Exhausted, &path, "no space left"));
        }
        content.extend_from_slice(data);
        let mode = request.mode.or(old.as_ref().map(|node| node.mode)).unwrap_or(0o644);
        self.insert_file(&path, content.into(), mode, user);
        if old.is_none() {
            changes.push(Change::new(&path, WatchEventKind::Create, false));
        }
        changes.push(Change::new(&path, WatchEventKind::Write, false));
        Ok((stat_of(&path, self.node(&path)?), changes))
    }

    /// Makes a directory and its parents.
    pub(super) fn make_dir(&mut self, request: &MakeDir) -> Result<(FileStat, Vec<Change>), AgentError> {
        let user = User::find(request.user.as_deref())?;
        let path = resolve(&request.path, user)?;
        let mut changes = self.make_parents(&path, user)?;
        match self.nodes.get(&path) {
            Some(node) if node.content.is_some() || request.exclusive => {
                return Err(error(ErrorKind::Exists, &path, "it exists already"));
            }
            Some(_) => {}
            None => {
                self.insert_dir(&path, request.mode.unwrap_or(0o755), user);
                changes.push(Change::new(&path, WatchEventKind::Create, true));
            }
        }
        Ok((stat_of(&path, self.node(&path)?), changes))
    }

    /// Renames a file or a tree.
    pub(super) fn rename(&mut self, request: &MoveFile) -> Result<(FileStat, Vec<Change>), AgentError> {
        let user = User::find(request.user.as_deref())?;
        let (from, to) = (resolve(&request.from, user)?, resolve(&request.to, user)?);
        let is_dir = self.node(&from)?.content.is_none();
        if to == from || depth_below(&from, &to).is_some() {
            return Err(error(ErrorKind::Invalid, &to, "it lies inside what is moved"));
        }
        match self.nodes.get(&to) {
            Some(_) if !request.overwrite => return Err(error(ErrorKind::Exists, &to, "it exists already")),
            Some(node) if node.content.is_none() => return Err(error(ErrorKind::WrongKind, &to, "is a directory")),
            _ => {}
        }
        let mut changes = self.make_parents(&to, user)?;
        let moved: Vec<String> =
            self.nodes.keys().filter(|path| **path == from || depth_below(&from, path).is_some()).cloned().collect();
        for path in moved {
            if let Some(node) = self.nodes.remove(&path) {
                self.nodes.insert(format!("{to}{}", &path[from.len()..]), node);
            }
        }
        changes.push(Change::new(&from, WatchEventKind::Rename, is_dir));
        changes.push(Change::new(&to, WatchEventKind::Create, is_dir));
        Ok((stat_of(&to, self.node(&to)?), changes))
    }

    /// Removes a file or a tree.
    pub(super) fn remove(&mut self, request: &RemoveFile) -> Result<Vec<Change>, AgentError> {
        let path = resolve(&request.path, User::find(request.user.as_deref())?)?;
        let is_dir = self.node(&path)?.content.is_none();
        let below: Vec<String> = self.nodes.keys().filter(|other| depth_below(&path, other).is_some()).cloned().collect();
        if path == "/" {
            return Err(error(ErrorKind::Denied, &path, "the root cannot be removed"));
        }
        if !below.is_empty() && !request.recursive {
            return Err(error(ErrorKind::WrongKind, &path, "the directory is not empty"));
        }
        for other in below {
            self.nodes.remove(&other);
        }
        self.nodes.remove(&path);
        Ok(vec![Change::new(&path, WatchEventKind::Remove, is_dir)])
    }

    fn make_parents(&mut self, path: &str, user: User) -> Result<Vec<Change>, AgentError> {
        let mut changes = Vec::new();
        for dir in ancestors(path) {
            match self.nodes.get(dir) {
                Some(node) if node.content.is_some() => return Err(error(ErrorKind::WrongKind, dir, "not a directory")),
                Some(_) => {}
                None => {
                    self.insert_dir(dir, 0o755, user);
                    changes.push(Change::new(dir, WatchEventKind::Create, true));
                }
            }
        }
        Ok(changes)
    }
}

/// The absolute path that `path` means for `user`, without `.` and `..`.
pub(super) fn resolve(path: &str, user: User) -> Result<String, AgentError> {
    if path.is_empty() || path.contains('\0') || path.len() > 4096 {
        return Err(AgentError::new(ErrorKind::Invalid, "a path has 1 to 4096 bytes and no NUL"));
    }
    let full = if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", user.home) };
    let mut parts: Vec<&str> = Vec::new();
    for part in full.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// How many levels `path` lies below `dir`; `None` when it does not.
pub(super) fn depth_below(dir: &str, path: &str) -> Option<usize> {
    let rest = if dir == "/" { path.strip_prefix('/')? } else { path.strip_prefix(dir)?.strip_prefix('/')? };
    (!rest.is_empty()).then(|| rest.split('/').count())
}

/// The directories above `path`, from the root down.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(move |(at, _)| if at == 0 { "/" } else { &path[..at] })
}

fn stat_of(path: &str, node: &Node) -> FileStat {
    FileStat {
        path: path.to_owned(),
        kind: if node.content.is_some() { FileKind::File } else { FileKind::Dir },
        size: node.content.as_ref().map_or(0, |content| content.len() as u64),
        mode: node.mode,
        uid: node.user.uid,
        gid: node.user.uid,
        owner: node.user.name.to_owned(),
        group: node.user.name.to_owned(),
        modified_at_ms: node.modified_at_ms,
        symlink_target: None,
    }
}

fn missing(path: &str) -> AgentError {
    error(ErrorKind::NotFound, path, "there is no such file")
}

fn error(kind: ErrorKind, path: &str, what: &str) -> AgentError {
    AgentError::new(kind, format!("{path:?}: {what}"))
}

/// Milliseconds since the Unix epoch.
pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
