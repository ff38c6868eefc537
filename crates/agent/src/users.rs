//! Users and groups from the sandbox's own `/etc/passwd` and `/etc/group`: no name service, bounded, tolerant of garbage.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::rc::Rc;

use rustix::fs::{Mode, OFlags};
use sandbank_agent_protocol::{AgentError, ErrorKind};

use crate::credentials;
use crate::errors::{Outcome, invalid};

/// More of an account file is not read.
const ACCOUNT_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// `getgroups` knows no more.
const GROUPS_MAX: usize = 65_536;

/// A user to act as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one included.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

#[derive(Debug)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
    shell: String,
}

#[derive(Debug)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// The parsed account files.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    accounts: Vec<Account>,
    groups: Vec<Group>,
    user_names: HashMap<u32, usize>,
    group_names: HashMap<u32, usize>,
}

impl Accounts {
    /// Parses both files; lines that make no sense are passed over.
    pub(crate) fn parse(passwd: &str, group: &str) -> Self {
        let accounts: Vec<_> = passwd.lines().filter_map(parse_account).collect();
        let groups: Vec<_> = group.lines().filter_map(parse_group).collect();
        let mut user_names = HashMap::new();
        for (index, account) in accounts.iter().enumerate() {
            user_names.entry(account.uid).or_insert(index);
        }
        let mut group_names = HashMap::new();
        for (index, group) in groups.iter().enumerate() {
            group_names.entry(group.gid).or_insert(index);
        }
        Self { accounts, groups, user_names, group_names }
    }

    /// A user by name, or the number as text.
    pub(crate) fn user_name(&self, uid: u32) -> String {
        self.by_uid(uid).map_or_else(|| uid.to_string(), |account| account.name.clone())
    }

    /// A group by name, or the number as text.
    pub(crate) fn group_name(&self, gid: u32) -> String {
        let group = self.group_names.get(&gid).and_then(|index| self.groups.get(*index));
        group.map_or_else(|| gid.to_string(), |group| group.name.clone())
    }

    fn by_uid(&self, uid: u32) -> Option<&Account> {
        self.user_names.get(&uid).and_then(|index| self.accounts.get(*index))
    }

    /// Resolves "name", "1000", "name:group" and "1000:1000".
    pub(crate) fn resolve(&self, spec: &str) -> Outcome<User> {
        let (user, group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        if user.is_empty() || group == Some("") {
            return Err(invalid(format_args!("{spec:?} is not a user: expected a name or number, optionally :group")));
        }
        let mut resolved = match (self.accounts.iter().find(|account| account.name == user), number(user)) {
            (Some(account), _) => self.user_of(account),
            (None, Some(uid)) => self.by_uid(uid).map_or_else(|| stranger(uid), |account| self.user_of(account)),
            (None, None) => return Err(not_found(format!("no user {user:?} in the sandbox's /etc/passwd"))),
        };
        if let Some(group) = group {
            resolved.gid = self.gid_of(group)?;
            resolved.groups = vec![resolved.gid];
        }
        Ok(resolved)
    }

    fn gid_of(&self, group: &str) -> Outcome<u32> {
        let named = self.groups.iter().find(|known| known.name == group).map(|known| known.gid);
        named.or_else(|| number(group)).ok_or_else(|| not_found(format!("no group {group:?} in the sandbox's /etc/group")))
    }

    fn user_of(&self, account: &Account) -> User {
        let mut groups = vec![account.gid];
        for group in &self.groups {
            if groups.len() >= GROUPS_MAX {
                break;
            }
            if group.gid != account.gid && group.members.contains(&account.name) {
                groups.push(group.gid);
            }
        }
        User {
            name: account.name.clone(),
            uid: account.uid,
            gid: account.gid,
            groups,
            home: or_else(&account.home, "/"),
            shell: or_else(&account.shell, "/bin/sh"),
        }
    }
}

fn or_else(value: &str, default: &str) -> String {
    if value.starts_with('/') { value.to_owned() } else { default.to_owned() }
}

fn stranger(uid: u32) -> User {
    let (home, name) = if uid == 0 { ("/root", "root".to_owned()) } else { ("/", uid.to_string()) };
    User { name, uid, gid: uid, groups: vec![uid], home: home.to_owned(), shell: "/bin/sh".to_owned() }
}

fn not_found(message: String) -> AgentError {
    AgentError::new(ErrorKind::NotFound, message)
}

/// A usable id: -1 means "leave it" to the kernel.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX && text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn parse_account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
    let (home, shell) = (fields.nth(1).unwrap_or_default(), fields.next().unwrap_or_default());
    let has_nul = line.contains('\0');
    (!has_nul).then(|| Account { name: name.to_owned(), uid, gid, home: home.to_owned(), shell: shell.trim_end().to_owned() })
}

fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = number(fields.nth(1)?)?;
    let members = fields.next().unwrap_or_default().split(',').map(|member| member.trim().to_owned());
    Some(Group { name: name.to_owned(), gid, members: members.filter(|member| !member.is_empty()).collect() })
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

#[derive(Debug)]
struct Cached {
    stamps: [Option<Stamp>; 2],
    accounts: Rc<Accounts>,
}

/// The account files, parsed again when they change.
#[derive(Debug, Default)]
pub(crate) struct UserCache {
    cached: RefCell<Option<Cached>>,
}

const FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];

impl UserCache {
    /// The accounts as they are now.
    pub(crate) fn accounts(&self) -> Rc<Accounts> {
        let stamps = FILES.map(stamp);
        let mut cached = self.cached.borrow_mut();
        if let Some(known) = &*cached
            && known.stamps == stamps
        {
            return Rc::clone(&known.accounts);
        }
        let [passwd, group] = FILES.map(read_bounded);
        let accounts = Rc::new(Accounts::parse(&passwd, &group));
        *cached = Some(Cached { stamps, accounts: Rc::clone(&accounts) });
        accounts
    }

    /// The user to act as; `None` is root, or the agent's own user where it has no root.
    pub(crate) fn resolve(&self, spec: Option<&str>) -> Outcome<User> {
        self.resolve_with(spec).map(|(user, _)| user)
    }

    /// The same, with the accounts it was found in.
    pub(crate) fn resolve_with(&self, spec: Option<&str>) -> Outcome<(User, Rc<Accounts>)> {
        let accounts = self.accounts();
        let user = match spec {
            Some(spec) => accounts.resolve(spec)?,
            None => {
                let mut own = accounts.resolve(&credentials::own_uid().to_string())?;
                own.gid = credentials::own_gid();
                own
            }
        };
        Ok((user, accounts))
    }
}

fn stamp(path: &str) -> Option<Stamp> {
    let stat = rustix::fs::stat(path).ok()?;
    Some(Stamp {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: stat.st_size,
        modified: (stat.st_mtime, stat.st_mtime_nsec),
        changed: (stat.st_ctime, stat.st_ctime_nsec),
    })
}

/// Reads the beginning of a regular file; anything else counts as empty. Never blocks on a pipe somebody put there.
fn read_bounded(path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) else { return String::new() };
    let file = File::from(fd);
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    // What could be read before an error is as good as the rest of a damaged file.
    let _ = file.take(ACCOUNT_FILE_BYTES_MAX).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/zsh\n:::\nbroken\nx:y:z:w\n\
                          huge:x:99999999999:1::/:\nminus:x:4294967295:0::/:\nbare:x:7:8\n";
    const GROUP: &str = "root:x:0:\nuser:x:1000:\ndocker:x:99:other,user\naudio:x:29: user ,\nnonsense\nbad:x:-3:user\n";

    fn accounts() -> Accounts {
        Accounts::parse(PASSWD, GROUP)
    }

    #[test]
    fn a_user_is_found_by_name_and_by_number_with_its_groups() {
        let user = accounts().resolve("user").unwrap();
        assert_eq!((user.uid, user.gid, user.groups.clone()), (1000, 1000, vec![1000, 99, 29]));
        assert_eq!((user.home.as_str(), user.shell.as_str()), ("/home/user", "/bin/zsh"));
        assert_eq!(accounts().resolve("1000").unwrap(), user);
    }

    #[test]
    fn a_group_replaces_the_users_own_groups() {
        let user = accounts().resolve("user:docker").unwrap();
        assert_eq!((user.gid, user.groups), (99, vec![99]));
        assert_eq!(accounts().resolve("1000:5").unwrap().gid, 5);
    }

    #[test]
    fn a_number_without_an_account_has_no_home() {
        let user = accounts().resolve("4242").unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (4242, 4242, "/"));
    }

    #[test]
    fn an_unknown_name_is_named_in_the_refusal() {
        let error = accounts().resolve("nobody-here").unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert!(error.message.contains("nobody-here"), "{}", error.message);
        assert_eq!(accounts().resolve("user:nogroup-here").unwrap_err().kind, ErrorKind::NotFound);
    }

    #[test]
    fn nonsense_is_refused_or_passed_over() {
        for spec in ["", ":", "user:", ":user"] {
            assert_eq!(accounts().resolve(spec).unwrap_err().kind, ErrorKind::Invalid, "{spec:?}");
        }
        for name in ["minus", "huge", "x", "broken", "4294967295", "-1", "+5"] {
            assert_eq!(accounts().resolve(name).unwrap_err().kind, ErrorKind::NotFound, "{name:?}");
        }
        let bare = accounts().resolve("bare").unwrap();
        assert_eq!((bare.home.as_str(), bare.shell.as_str()), ("/", "/bin/sh"));
    }

    #[test]
    fn arbitrary_bytes_parse_to_something() {
        let garbage: String = (0u32..5000).filter_map(|n| char::from_u32(n.wrapping_mul(7919) % 1200)).collect();
        let accounts = Accounts::parse(&garbage, &garbage);
        assert_eq!(accounts.user_name(77), "77");
    }
}
