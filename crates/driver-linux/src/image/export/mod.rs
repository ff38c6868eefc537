//! Layers as others keep them: the tar stream of what a layer changes of those beneath it (OCI image specification, "Layers").
//!
//! The way back of [`super::unpack`]: overlayfs's whiteouts and opaque marks become names, owners are those inside, and members come
//! in a fixed order, so that the same layer gives the same bytes each time. Nothing in the tree is followed, and what is held of it
//! in memory is bounded. A layer stands still, but files are checked to have what their headers said.

mod header;
mod walk;

use std::collections::HashMap;
use std::ffi::CStr;
use std::io::{self, Read};

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat, Timespec};
use rustix::io::Errno;
use sandbank_driver::DriverError;
use sandbank_model::Layer;
use tar::EntryType;

use super::error::{failed, shown};
use super::file::{Meta, is_opaque, read_xattrs};
use super::import::ImportLimits;
use super::pax::{REGIONS_MAX, Region};
use super::unpack::{OPAQUE_MARK, WHITEOUT};
use super::{ImageStore, is_layer_id, staging};
use header::Entry;
use walk::{Found, Walk};

/// Holes that are worth leaving out, together.
const HOLES_BYTES_MIN: u64 = 64 * 1024;
/// Most bytes of names of files that have further names.
const LINKS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A tar ends with two empty blocks.
const END: [u8; 1024] = [0; 1024];

impl ImageStore {
    /// The tar stream of a layer, without compression. Reading it blocks; a read that fails leaves it failed, so that what is cut
    /// short is never taken for whole.
    ///
    /// # Errors
    /// [`DriverError::ImageMissing`] when the layer is not there.
    pub fn read_layer(&self, layer: &Layer) -> Result<impl Read + Send + use<>, DriverError> {
        if !is_layer_id(&layer.id) || self.layer(&layer.id).is_none() {
            let detail = "it was removed; import the image again".to_owned();
            return Err(DriverError::ImageMissing { image: format!("layer {}", layer.id), detail });
        }
        let tree = staging::open_dir(&self.layer_dir(&layer.id).join("fs"))?;
        self.read_tree(tree).map_err(failed(|| format!("read layer {}", layer.id)))
    }

    fn read_tree(&self, tree: OwnedFd) -> io::Result<LayerStream> {
        let mut stream = LayerStream {
            walk: Walk::new(tree)?,
            ready: Vec::new(),
            ready_at: 0,
            file: None,
            links: HashMap::new(),
            links_bytes: 0,
            left: ImportLimits::default().stream_bytes_max(),
            state: State::Members,
        };
        let stat = rustix::fs::fstat(&stream.walk.dir)?;
        stream.write_dir(b".", &stat)?;
        Ok(stream)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Members,
    Ended,
    Failed,
}

/// A layer that is written member by member, as it is read.
struct LayerStream {
    walk: Walk,
    /// Headers and padding on their way out.
    ready: Vec<u8>,
    ready_at: usize,
    file: Option<FileData>,
    /// Names that files with several were written under.
    links: HashMap<u64, FirstName>,
    links_bytes: usize,
    /// Bytes that may still come.
    left: u64,
    state: State,
}

struct FirstName {
    path: Vec<u8>,
    /// Names that are still to come.
    left: u64,
}

/// A file whose data is being written.
struct FileData {
    file: OwnedFd,
    /// What is left, the next run last.
    regions: Vec<Region>,
    padding: usize,
    path: Vec<u8>,
}

impl Read for LayerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.state == State::Failed {
            return Err(io::Error::other("the layer could not be read to its end"));
        }
        let result = self.fill(buffer).and_then(|count| {
            self.left = self
                .left
                .checked_sub(count as u64)
                .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "the layer has more bytes than may be exported"))?;
            Ok(count)
        });
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }
}

impl LayerStream {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.ready_at < self.ready.len() {
                let count = buffer.len().min(self.ready.len() - self.ready_at);
                buffer[..count].copy_from_slice(&self.ready[self.ready_at..self.ready_at + count]);
                self.ready_at += count;
                return Ok(count);
            }
            self.ready.clear();
            self.ready_at = 0;
            if let Some(file) = &mut self.file {
                let count = file.read(buffer)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
                self.ready.resize(file.padding, 0);
                self.file = None;
            } else if self.state == State::Ended {
                return Ok(0);
            } else {
                self.next_member()?;
            }
        }
    }

    fn next_member(&mut self) -> io::Result<()> {
        let Some(found) = self.walk.next().map_err(|error| about(&self.walk.path, error))? else {
            self.state = State::Ended;
            self.ready.extend_from_slice(&END);
            return Ok(());
        };
        self.member(&found).map_err(|error| about(&self.walk.path, error))
    }

    fn member(&mut self, found: &Found) -> io::Result<()> {
        let name = found.name.to_bytes();
        if found.kind == FileType::CharacterDevice && found.stat.st_rdev == 0 {
            return self.whiteout(name);
        }
        if name.starts_with(WHITEOUT) {
            let message = "names that begin with .wh. take files away in layers of images; rename it to export the image";
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, message));
        }
        match found.kind {
            FileType::Directory => {
                self.walk.enter(&found.name)?;
                let path = self.walk.path.clone();
                self.write_dir(&path, &found.stat)
            }
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => self.leaf(found),
            // Neither imports nor commits let any other in.
            _ => Ok(()),
        }
    }

    /// Writes a directory that the walk is in: its header, and the mark if it hides what lies beneath.
    fn write_dir(&mut self, path: &[u8], stat: &Stat) -> io::Result<()> {
        let xattrs = read_xattrs(self.walk.dir.as_fd())?;
        let opaque = is_opaque(self.walk.dir.as_fd())?;
        let entry = Entry { xattrs: &xattrs, ..plain(EntryType::Directory, path, meta_inside(stat)) };
        header::write(&entry, &mut self.ready)?;
        if opaque {
            let mark = if path == b"." { OPAQUE_MARK.to_vec() } else { [path, b"/", OPAQUE_MARK].concat() };
            header::write(&plain(EntryType::Regular, &mark, MARK_META), &mut self.ready)?;
        }
        Ok(())
    }

    fn whiteout(&mut self, name: &[u8]) -> io::Result<()> {
        let parent = &self.walk.path[..self.walk.path.len() - name.len()];
        let mark = [parent, WHITEOUT, name].concat();
        header::write(&plain(EntryType::Regular, &mark, MARK_META), &mut self.ready)
    }

    fn leaf(&mut self, found: &Found) -> io::Result<()> {
        let (path, meta) = (self.walk.path.clone(), meta_inside(&found.stat));
        if found.stat.st_nlink > 1 {
            if let Some(first) = self.further_name(&found.stat) {
                let entry = Entry { target: &first, ..plain(EntryType::Link, &path, meta) };
                return header::write(&entry, &mut self.ready);
            }
            self.note_first_name(&found.stat, &path)?;
        }
        match found.kind {
            FileType::RegularFile => self.write_file(found, path, meta),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&self.walk.dir, &*found.name, Vec::new())?;
                let entry = Entry { target: target.as_bytes(), ..plain(EntryType::Symlink, &path, meta) };
                header::write(&entry, &mut self.ready)
            }
            _ => header::write(&plain(EntryType::Fifo, &path, meta), &mut self.ready),
        }
    }

    /// The first name of a file that was written before.
    fn further_name(&mut self, stat: &Stat) -> Option<Vec<u8>> {
        let first = self.links.get_mut(&stat.st_ino)?;
        first.left -= 1;
        if first.left > 0 {
            return Some(first.path.clone());
        }
        let first = self.links.remove(&stat.st_ino)?;
        self.links_bytes -= first.path.len();
        Some(first.path)
    }

    #[allow(clippy::useless_conversion, reason = "counts of links have 32 bits on arm64")]
    fn note_first_name(&mut self, stat: &Stat, path: &[u8]) -> io::Result<()> {
        self.links_bytes += path.len();
        if self.links_bytes > LINKS_BYTES_MAX {
            let message = "the layer has too many files with several names to be exported";
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        self.links.insert(stat.st_ino, FirstName { path: path.to_vec(), left: u64::from(stat.st_nlink) - 1 });
        Ok(())
    }

    fn write_file(&mut self, found: &Found, path: Vec<u8>, meta: Meta) -> io::Result<()> {
        let file = open_file(&self.walk.dir, &found.name)?;
        let stat = rustix::fs::fstat(&file)?;
        let xattrs = read_xattrs(file.as_fd())?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let on_disk = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let regions = if on_disk.saturating_add(HOLES_BYTES_MIN) <= size { sparse_regions(&file, size)? } else { None };
        let entry = Entry { size, xattrs: &xattrs, regions: regions.as_deref(), ..plain(EntryType::Regular, &path, meta) };
        header::write(&entry, &mut self.ready)?;
        let mut regions = regions.unwrap_or_else(|| vec![Region { offset: 0, length: size }]);
        let stored: u64 = regions.iter().map(|region| region.length).sum();
        let padding = usize::try_from(stored.next_multiple_of(512) - stored).unwrap_or(0);
        regions.reverse();
        self.file = Some(FileData { file, regions, padding, path });
        Ok(())
    }
}

impl FileData {
    /// 0 at the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.regions.last().is_some_and(|region| region.length == 0) {
            self.regions.pop();
        }
        let Some(region) = self.regions.last_mut() else { return Ok(0) };
        let want = usize::try_from(region.length).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut buffer[..want], region.offset))
            .map_err(|error| about(&self.path, error.into()))?;
        if count == 0 {
            return Err(about(&self.path, io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read")));
        }
        region.offset += count as u64;
        region.length -= count as u64;
        Ok(count)
    }
}

/// Marks look the same whoever made them and when.
const MARK_META: Meta = Meta { uid: 0, gid: 0, mode: 0, modified: Timespec { tv_sec: 0, tv_nsec: 0 } };

fn plain(kind: EntryType, path: &[u8], meta: Meta) -> Entry<'_> {
    Entry { kind, path, target: b"", meta, size: 0, xattrs: &[], regions: None }
}

/// As it is seen inside. Without root, what belongs to the caller belongs to root there, and there is nobody else.
fn meta_inside(stat: &Stat) -> Meta {
    let meta = Meta::of(stat);
    if rustix::process::geteuid().is_root() { meta } else { Meta { uid: 0, gid: 0, ..meta } }
}

fn open_file(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Where a file has data, if it has holes worth leaving out. Beyond the most runs that a reader takes, the rest is one run.
fn sparse_regions(file: &OwnedFd, size: u64) -> io::Result<Option<Vec<Region>>> {
    let mut regions: Vec<Region> = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let last = regions.len() + 2 == REGIONS_MAX;
        let end = if last { size } else { rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size) };
        regions.push(Region { offset: start, length: end - start });
        position = end;
    }
    // A hole at the end is told by an empty run behind it: GNU tar knows no other way.
    if position < size {
        regions.push(Region { offset: size, length: 0 });
    }
    let data: u64 = regions.iter().map(|region| region.length).sum();
    Ok((data.saturating_add(HOLES_BYTES_MIN) <= size).then_some(regions))
}

/// Says which file an error is about.
fn about(path: &[u8], error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("export {}: {error}", shown(path)))
}
