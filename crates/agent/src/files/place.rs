//! A path in the sandbox, and the user who acts on it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sandbank_agent_protocol::{AgentError, ErrorKind, FileKind, FileStat};

use crate::credentials::as_user;
use crate::errors::{Outcome, invalid, refused};
use crate::server::Agent;
use crate::users::{Accounts, User};

/// Permission bits.
pub(super) const MODE_BITS: u32 = 0o7777;
/// Opens that can neither block, nor take a terminal, nor leak into a child.
pub(super) const CAREFUL: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Where, and as whom.
pub(crate) struct Place {
    /// Absolute.
    pub(crate) path: String,
    /// Who acts.
    pub(crate) user: Rc<User>,
    accounts: Rc<Accounts>,
}

impl Place {
    /// Resolves a request's path and user. Relative paths begin at the user's home.
    pub(crate) fn resolve(agent: &Agent, path: &str, user: Option<&str>) -> Outcome<Self> {
        if path.is_empty() {
            return Err(invalid("the path is empty"));
        }
        if path.contains('\0') {
            return Err(invalid(format_args!("the path {path:?} contains a NUL byte")));
        }
        let (user, accounts) = agent.users.resolve_with(user)?;
        Ok(Self { path: absolute(&user.home, path), user: Rc::new(user), accounts })
    }

    /// Another path of the same user.
    pub(super) fn at(&self, path: String) -> Self {
        Self { path, user: Rc::clone(&self.user), accounts: Rc::clone(&self.accounts) }
    }

    /// Runs a synchronous step as the user; the error says what was tried.
    pub(crate) fn act<T>(&self, what: &str, step: impl FnOnce() -> Result<T, Errno>) -> Outcome<T> {
        as_user(&self.user, step)?.map_err(|errno| refused(format_args!("cannot {what} {}", self.path), errno))
    }

    /// The same, where the step's caller looks at the error.
    pub(crate) fn attempt<T>(&self, step: impl FnOnce() -> Result<T, Errno>) -> Outcome<Result<T, Errno>> {
        as_user(&self.user, step)
    }

    /// The directory it is in.
    pub(super) fn parent(&self) -> &str {
        match self.path.trim_end_matches('/').rsplit_once('/') {
            Some(("", _)) | None => "/",
            Some((parent, _)) => parent,
        }
    }

    /// A refusal because it is not what the operation is for.
    pub(super) fn wrong_kind(&self, what: &str) -> AgentError {
        AgentError::new(ErrorKind::WrongKind, format!("{} {what}", self.path))
    }

    /// Its metadata.
    pub(crate) fn stat(&self, follow: bool) -> Outcome<FileStat> {
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let (stat, target) = self.act("look at", || {
            let stat = rustix::fs::statat(CWD, &*self.path, flags)?;
            let target = if is_symlink(&stat) { rustix::fs::readlink(&*self.path, Vec::new()).ok() } else { None };
            Ok((stat, target))
        })?;
        Ok(self.describe(self.path.clone(), &stat, target.map(|target| text(target.as_bytes()))))
    }

    /// Metadata as the host sees it.
    pub(super) fn describe(&self, path: String, stat: &Stat, symlink_target: Option<String>) -> FileStat {
        FileStat {
            path,
            kind: kind(stat),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & MODE_BITS,
            uid: stat.st_uid,
            gid: stat.st_gid,
            owner: self.accounts.user_name(stat.st_uid),
            group: self.accounts.group_name(stat.st_gid),
            modified_at_ms: modified_ms(stat),
            symlink_target,
        }
    }

    /// Makes the directories that lead to it, owned by the user.
    pub(super) fn make_parents(&self) -> Outcome<()> {
        self.at(self.parent().to_owned()).make_directories()
    }

    /// Makes it and the directories that lead to it, where missing.
    pub(super) fn make_directories(&self) -> Outcome<()> {
        self.act("make the directory", || {
            let mut missing = Vec::new();
            let mut current = Path::new(&self.path);
            loop {
                match rustix::fs::stat(current) {
                    Ok(stat) if is_dir(&stat) => break,
                    Ok(_) => return Err(Errno::NOTDIR),
                    Err(Errno::NOENT) => missing.push(current),
                    Err(errno) => return Err(errno),
                }
                match current.parent() {
                    Some(parent) => current = parent,
                    None => break,
                }
            }
            for directory in missing.into_iter().rev() {
                match rustix::fs::mkdir(directory, Mode::from_raw_mode(0o777)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Ok(())
        })
    }
}

/// Joins and drops empty and `.` components. `..` stays: what it means depends on symbolic links.
fn absolute(home: &str, path: &str) -> String {
    let mut clean = String::with_capacity(home.len() + path.len() + 2);
    let base = if path.starts_with('/') { "" } else { home };
    for component in base.split('/').chain(path.split('/')) {
        if !component.is_empty() && component != "." {
            clean.push('/');
            clean.push_str(component);
        }
    }
    if clean.is_empty() { "/".to_owned() } else { clean }
}

pub(super) fn kind(stat: &Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Dir,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    kind(stat) == FileKind::Dir
}

pub(super) fn is_symlink(stat: &Stat) -> bool {
    kind(stat) == FileKind::Symlink
}

pub(super) fn is_file(stat: &Stat) -> bool {
    kind(stat) == FileKind::File
}

/// Which file it is, whatever its name.
pub(super) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// For people: bytes that are not UTF-8 are replaced.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `directory/name`.
pub(super) fn join(directory: &str, name: &[u8]) -> String {
    let name = std::ffi::OsStr::from_bytes(name).to_string_lossy();
    if directory == "/" { format!("/{name}") } else { format!("{directory}/{name}") }
}

fn modified_ms(stat: &Stat) -> i64 {
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    stat.st_mtime.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_begin_at_the_home_and_dots_are_dropped() {
        assert_eq!(absolute("/home/user", "a/./b//c"), "/home/user/a/b/c");
        assert_eq!(absolute("/home/user", "."), "/home/user");
        assert_eq!(absolute("/home/user", "/"), "/");
        assert_eq!(absolute("/", "x"), "/x");
        assert_eq!(absolute("/home/user", "/a/../b/"), "/a/../b");
    }
}
