//! Files that are copied: found, then put in through the agent, so that links in the image are followed inside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use sandbank_agent_protocol::{FileKind, FileStat, ListFiles, MakeDir, OpenMode, ReadFile, StatFile, WriteFile};
use sandbank_build::{CopiedFile, CopyAction, Origin, Pattern, content_hash, file_system_identity};

use super::archive::{Entry, EntryKind, Upload};
use super::run::{Job, Snapshot};
use crate::claim::Held;
use crate::types::Exec;
use crate::{Error, ErrorKind, Result};

/// Most entries that one step copies out of another image.
const LISTED_MAX: u32 = 100_000;
/// Deepest directory.
const DEPTH_MAX: u32 = 100;
/// Names that one `chown` is given.
const CHOWN_BATCH: usize = 500;

/// What a step copies.
pub(super) enum Files {
    /// Entries of an upload.
    Upload { upload: Arc<Upload>, tops: Vec<String> },
    /// Whatever the sources name in another image, which is looked up in a sandbox of it.
    Image(Snapshot),
}

impl Files {
    /// What the cache knows them by.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Image(image) => file_system_identity(&image.layers, image.on_host),
            Self::Upload { upload, tops } => {
                let files = tops.iter().flat_map(|top| below(upload, top));
                content_hash(files.map(|(path, entry)| {
                    let (kind, content) = match &entry.kind {
                        EntryKind::Dir => ('d', ""),
                        EntryKind::File { digest, .. } => ('f', digest.as_str()),
                        EntryKind::Link { target } => ('l', target.as_str()),
                    };
                    CopiedFile { path, mode: entry.mode, kind, content }
                }))
            }
        }
    }
}

/// An entry of an upload and all that is in it.
fn below<'a>(upload: &'a Upload, top: &str) -> impl Iterator<Item = (&'a str, &'a Entry)> {
    let entries = upload.entries();
    // Below the top lies everything; below `dir`, what begins with `dir/`, which stands in one piece.
    let prefix = if top.is_empty() { String::new() } else { format!("{top}/") };
    let own = entries.get_key_value(top).filter(|_| !top.is_empty());
    let inside = entries.range(prefix.clone()..).take_while(move |(path, _)| path.starts_with(&prefix));
    own.into_iter().chain(inside).map(|(path, entry)| (path.as_str(), entry))
}

/// Something to put in, and where.
struct Item {
    dest: String,
    mode: u32,
    what: What,
}

enum What {
    Dir,
    Link(String),
    Uploaded {
        at: u64,
        size: u64,
    },
    /// A file in the other sandbox.
    Remote(String),
}

impl Job {
    /// Finds out what a step copies.
    pub(super) async fn find_files(&self, copy: &CopyAction, stages: &BTreeMap<usize, Snapshot>) -> Result<Files> {
        let id = match &copy.from {
            Origin::Stage(index) => return Ok(Files::Image(stages.get(index).cloned().unwrap_or_default())),
            Origin::Image(name) => return Ok(Files::Image(self.image(name).await?)),
            Origin::Upload(id) => id.clone(),
            Origin::Context => self.request.context.clone().ok_or_else(|| {
                Error::invalid(
                    "nothing was uploaded to copy from: send the files (POST /v1/contexts) and name the upload as context",
                )
            })?,
        };
        let known = self.uploads.lock().get(&id).cloned();
        let upload = match known {
            Some(upload) => upload,
            None => {
                let upload = Arc::new(self.inner().context_open(self.tenant(), &id).await?);
                self.uploads.lock().insert(id, Arc::clone(&upload));
                upload
            }
        };
        let mut tops = Vec::new();
        for source in &copy.sources {
            let pattern = Pattern::new(source).map_err(Error::invalid)?;
            let before = tops.len();
            if pattern.is_wild() {
                tops.extend(upload.entries().keys().filter(|path| pattern.matches(path)).cloned());
            } else if upload.entries().contains_key(source) {
                tops.push(source.clone());
            }
            if tops.len() == before {
                return Err(Error::invalid(format!(
                    "there is no {source:?} among the uploaded files: a .dockerignore may leave it out"
                )));
            }
        }
        Ok(Files::Upload { upload, tops })
    }

    /// Puts files into the sandbox.
    pub(super) async fn copy(&self, held: &Held, copy: &CopyAction, files: &Files) -> Result<()> {
        let (items, other) = match files {
            Files::Upload { upload, tops } => (self.uploaded_items(held, copy, upload, tops).await?, None),
            Files::Image(image) => {
                let other = self.sandbox(image).await?;
                (self.remote_items(held, copy, &other).await?, Some(other))
            }
        };
        let upload = if let Files::Upload { upload, .. } = files { Some(upload) } else { None };
        for item in &items {
            self.put(held, copy, item, upload, other.as_ref()).await?;
        }
        if let Some(owner) = &copy.chown {
            let paths: Vec<&str> = items.iter().map(|item| item.dest.as_str()).collect();
            self.chown(held, owner, &paths).await?;
        }
        Ok(())
    }

    /// Whether files go into the destination, not to its very name.
    async fn goes_into_directory(&self, held: &Held, copy: &CopyAction, several: bool) -> Result<bool> {
        if several || copy.dest.ends_with('/') {
            return Ok(true);
        }
        Ok(self.stat(held, &copy.dest).await?.is_some_and(|stat| stat.kind == FileKind::Dir))
    }

    async fn stat(&self, held: &Held, path: &str) -> Result<Option<FileStat>> {
        let stat = StatFile { path: path.to_owned(), user: None, follow: true };
        match self.control.file_stat(&self.caller, held.sandbox().id, stat).await {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn uploaded_items(&self, held: &Held, copy: &CopyAction, upload: &Upload, tops: &[String]) -> Result<Vec<Item>> {
        let into = self.goes_into_directory(held, copy, tops.len() > 1).await?;
        let mut items = Vec::new();
        for top in tops {
            let is_dir = upload.entries().get(top).is_some_and(|entry| entry.kind == EntryKind::Dir);
            for (path, entry) in below(upload, top) {
                let rest = path.strip_prefix(top.as_str()).unwrap_or(path).trim_start_matches('/');
                let what = match &entry.kind {
                    EntryKind::Dir => What::Dir,
                    EntryKind::Link { target } => What::Link(target.clone()),
                    EntryKind::File { at, size, .. } => What::Uploaded { at: *at, size: *size },
                };
                items.push(Item { dest: place(&copy.dest, top, rest, is_dir, into), mode: entry.mode, what });
            }
        }
        Ok(items)
    }

    async fn remote_items(&self, held: &Held, copy: &CopyAction, other: &Held) -> Result<Vec<Item>> {
        let mut tops: Vec<FileStat> = Vec::new();
        for source in &copy.sources {
            let before = tops.len();
            self.remote_tops(other, source, &mut tops).await?;
            if tops.len() == before {
                return Err(Error::invalid(format!("there is no /{source} in the image that is copied from")));
            }
        }
        let into = self.goes_into_directory(held, copy, tops.len() > 1).await?;
        let mut items = Vec::new();
        for top in tops {
            let (is_dir, path) = (top.kind == FileKind::Dir, top.path.clone());
            let mut found = vec![top];
            if is_dir {
                found.extend(self.list(other, &path, DEPTH_MAX).await?);
            }
            for stat in found {
                let rest = stat.path.strip_prefix(&path).unwrap_or(&stat.path).trim_start_matches('/').to_owned();
                let what = match stat.kind {
                    FileKind::Dir => What::Dir,
                    FileKind::Symlink => What::Link(stat.symlink_target.unwrap_or_default()),
                    FileKind::File => What::Remote(stat.path),
                    FileKind::Other => continue,
                };
                items.push(Item { dest: place(&copy.dest, &path, &rest, is_dir, into), mode: stat.mode, what });
            }
        }
        Ok(items)
    }

    /// What a source names in another image: a path as it is, or all that a pattern matches.
    async fn remote_tops(&self, other: &Held, source: &str, tops: &mut Vec<FileStat>) -> Result<()> {
        let pattern = Pattern::new(source).map_err(Error::invalid)?;
        if !pattern.is_wild() {
            let found = self.stat(other, &format!("/{source}")).await?;
            tops.extend(found.map(|stat| FileStat { path: format!("/{source}"), ..stat }));
            return Ok(());
        }
        let parts: Vec<&str> = source.split('/').collect();
        let plain = parts.iter().take_while(|part| !part.contains(['*', '?', '[', '\\'])).count();
        let deep = if source.contains("**") { DEPTH_MAX } else { u32::try_from(parts.len() - plain).unwrap_or(DEPTH_MAX) };
        let top = format!("/{}", parts[..plain].join("/"));
        let listed = match self.list(other, &top, deep).await {
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
            listed => listed?,
        };
        tops.extend(listed.into_iter().filter(|stat| pattern.matches(stat.path.trim_start_matches('/'))));
        Ok(())
    }

    async fn list(&self, held: &Held, path: &str, depth: u32) -> Result<Vec<FileStat>> {
        let list = ListFiles { path: path.to_owned(), user: None, depth, limit: LISTED_MAX };
        let listed = self.control.file_list(&self.caller, held.sandbox().id, list).await?;
        if listed.len() >= LISTED_MAX as usize {
            return Err(Error::invalid(format!("{path} holds more than {LISTED_MAX} files: copy less at once")));
        }
        Ok(listed)
    }

    async fn put(
        &self,
        held: &Held,
        copy: &CopyAction,
        item: &Item,
        upload: Option<&Arc<Upload>>,
        other: Option<&Held>,
    ) -> Result<()> {
        let (control, caller, id) = (&self.control, &self.caller, held.sandbox().id);
        let mode = Some(copy.chmod.unwrap_or(item.mode));
        let path = item.dest.clone();
        if let What::Dir = item.what {
            control.file_mkdir(caller, id, MakeDir { path, user: None, mode, exclusive: false }).await?;
            return Ok(());
        }
        if let What::Link(target) = &item.what {
            return self.link(held, target, &path).await;
        }
        let write = WriteFile { path, user: None, mode, open: OpenMode::Replace };
        let mut writer = control.file_write(caller, id, write).await?;
        match (&item.what, upload, other) {
            (What::Uploaded { at, size }, Some(upload), _) => {
                let (mut at, mut left) = (*at, *size);
                while left > 0 {
                    let piece = upload.piece(at, left).await?;
                    (at, left) = (at + piece.len() as u64, left - piece.len() as u64);
                    writer.write(piece).await?;
                }
            }
            (What::Remote(from), _, Some(other)) => {
                let read = ReadFile { path: from.clone(), user: None, offset: 0, length: None };
                let mut reader = control.file_read(caller, other.sandbox().id, read).await?;
                while let Some(piece) = reader.next().await? {
                    writer.write(piece).await?;
                }
            }
            _ => {}
        }
        writer.finish().await?;
        Ok(())
    }

    async fn link(&self, held: &Held, target: &str, path: &str) -> Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
            let mkdir = MakeDir { path: parent.to_owned(), user: None, mode: None, exclusive: false };
            self.control.file_mkdir(&self.caller, held.sandbox().id, mkdir).await?;
        }
        self.tool(held, &["ln", "-sfn", "--", target, path], "copy symbolic links").await
    }

    async fn chown(&self, held: &Held, owner: &str, paths: &[&str]) -> Result<()> {
        let owner = match owner {
            owner if owner.contains(':') => owner.to_owned(),
            number if number.bytes().all(|byte| byte.is_ascii_digit()) => format!("{number}:{number}"),
            // The user's own group.
            name => format!("{name}:"),
        };
        for batch in paths.chunks(CHOWN_BATCH) {
            let mut argv = vec!["chown", "-h", "--", &owner];
            argv.extend(batch);
            self.tool(held, &argv, "copy with --chown").await?;
        }
        Ok(())
    }

    /// Runs a program of the image's own.
    async fn tool(&self, held: &Held, argv: &[&str], what: &str) -> Result<()> {
        let exec = Exec {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            cwd: Some("/".to_owned()),
            kill_on_disconnect: true,
            ..Exec::default()
        };
        let failed = |why: String| Error::invalid(format!("to {what}, the image needs a working {:?}: {why}", argv[0]));
        match self.program(held, exec, true).await {
            Ok(0) => Ok(()),
            Ok(code) => Err(failed(format!("it ended with code {code}"))),
            Err(error) if error.kind == ErrorKind::NotFound => Err(failed(error.message)),
            Err(error) => Err(error),
        }
    }
}

/// Where an entry goes: a directory's content into the destination, a file to it or into it.
fn place(dest: &str, top: &str, rest: &str, top_is_dir: bool, into: bool) -> String {
    let base = dest.trim_end_matches('/');
    let name = top.rsplit('/').next().unwrap_or(top);
    let path = match (top_is_dir, into) {
        (true, _) if rest.is_empty() => base.to_owned(),
        (true, _) => format!("{base}/{rest}"),
        (false, true) => format!("{base}/{name}"),
        (false, false) => base.to_owned(),
    };
    if path.is_empty() { "/".to_owned() } else { path }
}
