//! Removes what destroyed sandboxes left on disk, beside everything else.
//!
//! A sandbox's directory is renamed into the trash in one step; that is the moment it is gone. Emptying it waits for the disk
//! (where the file system discards freed blocks at once, milliseconds a directory), so several threads share the waiting.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use crate::image::remove_tree;
use crate::skeleton::{self, Skeletons};

/// Threads that remove. They sleep when there is nothing to do.
const THREADS: usize = 8;
/// Nice value of those threads.
const REMOVER_NICE: i32 = 10;
/// Directories that may wait to be removed. Beyond that, destroying waits, so that the disk does not fill with trash.
const WAITING_MAX: usize = 512;

/// Directories in the trash that share the load: the one that an emptied directory is removed from is locked meanwhile, and a
/// rename into it would have to wait.
const BUCKETS: u64 = 64;

/// The trash and those who empty it. Dropped, the threads finish what waits.
#[derive(Debug)]
pub(crate) struct Remover {
    trash: PathBuf,
    moved: AtomicU64,
    queue: SyncSender<PathBuf>,
    skeletons: Skeletons,
}

impl Remover {
    /// Starts the threads, first with what an earlier server left in `trash`. The directory must exist. `grafts` as in
    /// [`skeleton::strip`].
    pub(crate) fn start(trash: PathBuf, grafts: Vec<PathBuf>) -> std::io::Result<Self> {
        let mut left = Vec::new();
        for bucket in 0..BUCKETS {
            let bucket = trash.join(format!("{bucket:02x}"));
            std::fs::create_dir_all(&bucket)?;
            left.extend(std::fs::read_dir(&bucket)?.flatten().map(|entry| entry.path()));
        }
        let (queue, receiver) = sync_channel(WAITING_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        let skeletons = Skeletons::default();
        for _ in 0..THREADS {
            let (receiver, grafts, skeletons) = (Arc::clone(&receiver), grafts.clone(), skeletons.clone());
            let thread = std::thread::Builder::new().name("remover".to_owned());
            thread.spawn(move || remove_all(&receiver, &grafts, &skeletons))?;
        }
        let remover = Self { trash, moved: AtomicU64::new(0), queue, skeletons };
        for path in left {
            remover.enqueue(path);
        }
        Ok(remover)
    }

    /// Takes a directory out of sight, and has it removed. One that is not there is no error. May wait for the disk.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), Errno> {
        let number = self.moved.fetch_add(1, Ordering::Relaxed);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|_| Errno::IO)?;
        let aside = self.trash.join(format!("{:02x}/{number}-{:016x}", number % BUCKETS, u64::from_le_bytes(random)));
        match rustix::fs::rename(path, &aside) {
            Err(Errno::NOENT) => return Ok(()),
            result => result?,
        }
        self.enqueue(aside);
        Ok(())
    }

    /// An emptied directory in which the next sandbox can be made. Whoever takes one moves it away, or gives it back.
    pub(crate) fn take_skeleton(&self) -> Option<PathBuf> {
        self.skeletons.take()
    }

    /// Takes back a skeleton that was perhaps not used. May wait for the disk.
    pub(crate) fn give_back(&self, skeleton: PathBuf) {
        self.enqueue(skeleton);
    }

    fn enqueue(&self, path: PathBuf) {
        // It fails only when all threads are gone; then the next start finds it.
        let _ = self.queue.send(path);
    }
}

fn remove_all(queue: &Mutex<Receiver<PathBuf>>, grafts: &[PathBuf], skeletons: &Skeletons) {
    // Of this thread alone: cleaning up gives way to serving.
    let _ = rustix::process::setpriority_process(None, REMOVER_NICE);
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(path) = next else { return };
        // What is not as expected is removed, whatever it is.
        if skeleton::strip(&path, grafts).unwrap_or(false) && skeletons.keep(&path) {
            continue;
        }
        if let Err(error) = remove_tree(&path) {
            tracing::warn!(path = %path.display(), %error, "a destroyed sandbox's files could not all be removed; the next start tries again");
        }
    }
}
