//! Files inside. Where a request names no user, the sandbox's own user acts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandbank_agent_protocol as agent;
use sandbank_agent_protocol::{Connection, Frame, Reply, Request};
use sandbank_model::{Sandbox, SandboxId};

use crate::agent::Incoming;
use crate::control::{Control, Inner};
use crate::convert::{ended_under_stream, unresponsive};
use crate::streams::StreamGuard;
use crate::types::{Caller, Id};
use crate::{Error, ErrorKind, Result};

/// Longest path.
const PATH_MAX: usize = 4096;
/// Most entries of one listing, whatever is asked.
const LIST_MAX: usize = 100_000;
/// Most bytes of names in one listing: more than an honest agent has for so many entries.
const LIST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest wait for the agent to take a piece of a file or to complete one: a disk may be slow, not dead.
const DISK_TIMEOUT: Duration = Duration::from_secs(60);

/// A file being read.
#[derive(Debug)]
pub struct FileReader {
    /// Its metadata.
    pub stat: agent::FileStat,
    incoming: Incoming,
    ended: bool,
}

impl FileReader {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        match self.incoming.some_frame().await? {
            Frame::Data(data) => Ok(Some(data)),
            Frame::End => {
                self.ended = true;
                Ok(None)
            }
            Frame::Message(body) => {
                self.incoming.reply(&body)?;
                Err(self.incoming.confused())
            }
            Frame::Output(..) => Err(self.incoming.confused()),
        }
    }
}

/// A file being written. Dropping it before `finish` leaves the old file.
pub struct FileWriter {
    connection: Connection,
    guard: StreamGuard,
    inner: Arc<Inner>,
    id: SandboxId,
}

impl std::fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWriter").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FileWriter {
    /// Adds a piece.
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        let sent = tokio::select! {
            biased;
            sent = tokio::time::timeout(DISK_TIMEOUT, self.connection.send_data(data)) => sent,
            () = self.guard.ended() => return Err(ended_under_stream()),
        };
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.refusal(error.into()).await),
            Err(_) => Err(self.inner.suspect(self.id, unresponsive())),
        }
    }

    /// Completes the file.
    pub async fn finish(mut self) -> Result<agent::FileStat> {
        if let Err(error) = self.connection.send_end().await {
            return Err(self.refusal(error.into()).await);
        }
        let reply = tokio::select! {
            biased;
            reply = tokio::time::timeout(DISK_TIMEOUT, self.connection.reply("the file's metadata")) => reply,
            () = self.guard.ended() => return Err(ended_under_stream()),
        };
        match reply {
            Ok(Ok(Reply::Stat(stat))) => Ok(stat),
            Ok(Ok(_)) => Err(self.inner.confused(self.id)),
            Ok(Err(error)) => Err(self.inner.suspect(self.id, error.into())),
            Err(_) => Err(self.inner.suspect(self.id, unresponsive())),
        }
    }

    /// An agent that refuses (disk full, no permission) says why and closes: that is worth more than the broken pipe.
    async fn refusal(&mut self, broken: Error) -> Error {
        match tokio::time::timeout(Duration::from_secs(1), self.connection.reply("a refusal")).await {
            Ok(Err(agent::ClientError::Refused(refused))) => refused.into(),
            _ => self.inner.suspect(self.id, broken),
        }
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if !self.guard.is_ended() {
            self.inner.activity.touch(self.id, self.inner.now());
        }
    }
}

/// A watch on a directory.
#[derive(Debug)]
pub struct Watch {
    incoming: Incoming,
}

impl Watch {
    /// The next change; `None` when the watch ended. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<agent::WatchEvent>> {
        match self.incoming.frame().await? {
            None | Some(Frame::End) => Ok(None),
            Some(Frame::Message(body)) => match self.incoming.reply(&body)? {
                Reply::Watched(event) => Ok(Some(event)),
                _ => Err(self.incoming.confused()),
            },
            Some(_) => Err(self.incoming.confused()),
        }
    }
}

impl Control {
    /// One file's metadata.
    pub async fn file_stat(&self, caller: &Caller, id: Id, stat: agent::StatFile) -> Result<agent::FileStat> {
        check_path(&stat.path)?;
        let with_user = |sandbox: &Sandbox| Request::Stat(agent::StatFile { user: user_of(sandbox, stat.user), ..stat });
        self.inner.ask_stat(caller, id, with_user).await
    }

    /// A directory's entries, at most as many as asked.
    pub async fn file_list(&self, caller: &Caller, id: Id, list: agent::ListFiles) -> Result<Vec<agent::FileStat>> {
        check_path(&list.path)?;
        let inner = &self.inner;
        let sandbox = inner.running(caller, id).await?;
        let limit = usize::try_from(list.limit).unwrap_or(usize::MAX).min(LIST_MAX);
        let request = Request::List(agent::ListFiles {
            user: user_of(&sandbox, list.user),
            depth: list.depth.max(1),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
            path: list.path,
        });
        let mut connection = inner.open_in(&sandbox, &request).await?;
        let (mut entries, mut bytes) = (Vec::<agent::FileStat>::new(), 0);
        let give_up = tokio::time::Instant::now() + DISK_TIMEOUT;
        while tokio::time::Instant::now() < give_up {
            match inner.first_reply(id, &mut connection).await? {
                Reply::Entries(more) => {
                    bytes += more.iter().map(|file| file.path.len() + file.owner.len() + file.group.len()).sum::<usize>();
                    bytes += more.iter().filter_map(|file| file.symlink_target.as_ref()).map(String::len).sum::<usize>();
                    entries.extend(more);
                }
                Reply::Done => return Ok(entries),
                _ => return Err(inner.confused(id)),
            }
            if entries.len() > limit || bytes > LIST_BYTES_MAX {
                return Err(inner.confused(id));
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "the listing did not end in time: ask for less depth or fewer entries"))
    }

    /// A file's content.
    pub async fn file_read(&self, caller: &Caller, id: Id, read: agent::ReadFile) -> Result<FileReader> {
        check_path(&read.path)?;
        let inner = &self.inner;
        let sandbox = inner.running(caller, id).await?;
        let request = Request::Read(agent::ReadFile { user: user_of(&sandbox, read.user), ..read });
        let mut connection = inner.open_in(&sandbox, &request).await?;
        let Reply::Stat(stat) = inner.first_reply(id, &mut connection).await? else {
            return Err(inner.confused(id));
        };
        let (reader, writer) = connection.split();
        let incoming = Incoming::with_writer(Arc::clone(inner), id, reader, writer);
        Ok(FileReader { stat, incoming, ended: false })
    }

    /// Begins to write a file.
    pub async fn file_write(&self, caller: &Caller, id: Id, write: agent::WriteFile) -> Result<FileWriter> {
        check_path(&write.path)?;
        let inner = &self.inner;
        let sandbox = inner.running(caller, id).await?;
        let request = Request::Write(agent::WriteFile { user: user_of(&sandbox, write.user), ..write });
        let connection = inner.open_in(&sandbox, &request).await?;
        let guard = inner.streams.open(id);
        Ok(FileWriter { connection, guard, inner: Arc::clone(inner), id })
    }

    /// Renames; the metadata at the new place.
    pub async fn file_move(&self, caller: &Caller, id: Id, mv: agent::MoveFile) -> Result<agent::FileStat> {
        check_path(&mv.from)?;
        check_path(&mv.to)?;
        let with_user = |sandbox: &Sandbox| Request::Move(agent::MoveFile { user: user_of(sandbox, mv.user), ..mv });
        self.inner.ask_stat(caller, id, with_user).await
    }

    /// Removes a file or a tree.
    pub async fn file_remove(&self, caller: &Caller, id: Id, remove: agent::RemoveFile) -> Result<()> {
        check_path(&remove.path)?;
        let sandbox = self.inner.running(caller, id).await?;
        let request = Request::Remove(agent::RemoveFile { user: user_of(&sandbox, remove.user), ..remove });
        self.inner.ask_done(caller, id, &request).await
    }

    /// Makes a directory and its parents.
    pub async fn file_mkdir(&self, caller: &Caller, id: Id, mkdir: agent::MakeDir) -> Result<agent::FileStat> {
        check_path(&mkdir.path)?;
        let with_user = |sandbox: &Sandbox| Request::MakeDir(agent::MakeDir { user: user_of(sandbox, mkdir.user), ..mkdir });
        self.inner.ask_stat(caller, id, with_user).await
    }

    /// Tells of changes below a directory. The watch is in place when this returns.
    pub async fn file_watch(&self, caller: &Caller, id: Id, watch: agent::WatchFiles) -> Result<Watch> {
        check_path(&watch.path)?;
        let inner = &self.inner;
        let sandbox = inner.running(caller, id).await?;
        let request = Request::Watch(agent::WatchFiles { user: user_of(&sandbox, watch.user), ..watch });
        let mut connection = inner.open_in(&sandbox, &request).await?;
        let Reply::Done = inner.first_reply(id, &mut connection).await? else {
            return Err(inner.confused(id));
        };
        let (reader, writer) = connection.split();
        Ok(Watch { incoming: Incoming::with_writer(Arc::clone(inner), id, reader, writer) })
    }
}

impl Inner {
    /// One request that is answered by a file's metadata.
    async fn ask_stat(
        self: &Arc<Self>,
        caller: &Caller,
        id: SandboxId,
        request: impl FnOnce(&Sandbox) -> Request + Send,
    ) -> Result<agent::FileStat> {
        let sandbox = self.running(caller, id).await?;
        let mut connection = self.open_in(&sandbox, &request(&sandbox)).await?;
        match self.first_reply(id, &mut connection).await? {
            Reply::Stat(stat) => Ok(stat),
            _ => Err(self.confused(id)),
        }
    }
}

fn user_of(sandbox: &Sandbox, asked: Option<String>) -> Option<String> {
    asked.or_else(|| sandbox.spec.user.clone())
}

fn check_path(path: &str) -> Result<()> {
    if path.is_empty() || path.len() > PATH_MAX {
        return Err(Error::invalid(format!("a path has 1 to {PATH_MAX} bytes, this one has {}", path.len())));
    }
    if path.contains('\0') {
        return Err(Error::invalid("a path cannot hold a NUL byte"));
    }
    Ok(())
}
