//! Reads a file.

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sandbank_agent_protocol::{DATA_MAX, Frame, ReadFile, Reply, write_data};
use tokio::task::yield_now;

use super::Place;
use super::place::{CAREFUL, is_dir, is_file};
use crate::errors::{Failure, refused};
use crate::host::Host;
use crate::server::Agent;

/// Send buffer of the socket, so that reading the next piece overlaps with the host taking this one.
const SEND_BUFFER: usize = 4 * DATA_MAX;

/// Serves a `Read` request.
pub(super) async fn read(agent: &Agent, host: &mut Host, request: &ReadFile) -> Result<(), Failure> {
    let place = Place::resolve(agent, &request.path, request.user.as_deref())?;
    let (file, stat) = place.act("read", || {
        // Looked at first: opening a device can have effects of its own.
        let stat = rustix::fs::stat(&*place.path)?;
        if !is_file(&stat) {
            return Ok((None, stat));
        }
        let file = rustix::fs::open(&*place.path, OFlags::RDONLY | CAREFUL, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        Ok((Some(file), stat))
    })?;
    let Some(file) = file.filter(|_| is_file(&stat)) else {
        return Err(place.wrong_kind(if is_dir(&stat) { "is a directory" } else { "is not a regular file" }).into());
    };
    host.reply(&Reply::Stat(place.describe(place.path.clone(), &stat, None))).await?;
    let mut left = request.length.unwrap_or(u64::MAX);
    let mut offset = request.offset;
    if left > DATA_MAX as u64 && u64::try_from(stat.st_size).is_ok_and(|size| size > DATA_MAX as u64) {
        host.widen(SEND_BUFFER);
    }
    let mut buffer = Vec::new();
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(DATA_MAX).min(DATA_MAX);
        buffer.clear();
        buffer.reserve_exact(wanted);
        let read = match rustix::io::pread(&file, spare_capacity(&mut buffer), offset) {
            Ok(read) => read.min(wanted),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(refused(format_args!("cannot read {}", place.path), errno).into()),
        };
        if read == 0 {
            break;
        }
        write_data(&mut host.writer, &buffer[..read]).await?;
        offset = offset.saturating_add(read as u64);
        left -= read as u64;
        yield_now().await;
    }
    host.writer.frame(&Frame::End).await
}
