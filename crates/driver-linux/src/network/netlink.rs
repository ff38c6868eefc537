//! Netlink by hand: messages, attributes, a socket.
//!
//! The launcher has one thread and no runtime, and what it and the driver say to the kernel here is on the way of every new sandbox;
//! so requests are written into one buffer and sent with one call. The kernel works them off before the call returns: what it has to
//! say waits then, and no answer means success.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Most bytes sent at once: a batch that is longer is refused by the kernel unless the socket's buffer has room.
const SEND_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Room for one datagram of a dump; the kernel makes them no longer than this where it can (netlink(7)).
const RECEIVE_BYTES: usize = 64 * 1024;
/// The type of a message that tells of an error, or of success (netlink(7)).
const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;

/// Requests that are sent together.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    bytes: Vec<u8>,
}

impl Requests {
    /// Adds one: its type, its flags besides `NLM_F_REQUEST`, the fixed part of its body, and attributes.
    pub(crate) fn add(&mut self, kind: u16, flags: i32, fixed: &[u8], attributes: impl FnOnce(&mut Attributes<'_>)) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER_BYTES]);
        self.bytes.extend_from_slice(fixed);
        pad(&mut self.bytes);
        attributes(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - begin).unwrap_or(u32::MAX);
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(0);
        let header = &mut self.bytes[begin..begin + HEADER_BYTES];
        header[0..4].copy_from_slice(&length.to_ne_bytes());
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&flags.to_ne_bytes());
    }
}

/// Attributes of a message, or of an attribute that holds others.
pub(crate) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(self.0);
    }

    /// A text that ends with a zero byte.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Netfilter's numbers are big-endian.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.bytes(kind, &address.octets()),
            IpAddr::V6(address) => self.bytes(kind, &address.octets()),
        }
    }

    /// An attribute that holds others: not more than 64 KiB of them.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes<'_>)) {
        let begin = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        inner(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - begin).unwrap_or(u16::MAX);
        self.0[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[begin + 2..begin + 4].copy_from_slice(&(kind | libc::NLA_F_NESTED as u16).to_ne_bytes());
    }

    /// Bytes without a header of their own: the fixed part of a message within an attribute.
    pub(crate) fn raw(&mut self, value: &[u8]) {
        self.0.extend_from_slice(value);
        pad(self.0);
    }
}

/// Everything begins at a multiple of four bytes.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A netlink socket. It speaks to the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    /// To interfaces, addresses and routes.
    pub(crate) fn route() -> Result<Self, Errno> {
        Self::open(None)
    }

    /// To the packet filter.
    pub(crate) fn netfilter() -> Result<Self, Errno> {
        Self::open(Some(rustix::net::netlink::NETFILTER))
    }

    /// To what knows sockets.
    pub(crate) fn sock_diag() -> Result<Self, Errno> {
        Self::open(Some(rustix::net::netlink::SOCK_DIAG))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self, Errno> {
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self(socket))
    }

    /// Has requests worked off. The first refusal is returned; requests to the packet filter take effect together or not at all,
    /// others one by one.
    pub(crate) fn request(&self, requests: &Requests) -> Result<(), Errno> {
        self.make_room(requests.bytes.len())?;
        rustix::io::retry_on_intr(|| rustix::net::send(&self.0, &requests.bytes, SendFlags::empty()))?;
        let mut room = [0; 4096];
        let mut refusal = Ok(());
        loop {
            match rustix::net::recv(&self.0, &mut room, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                Ok((length, _)) => {
                    let told = messages(&room[..length.min(room.len())]).filter(|message| message.kind == ERROR);
                    for message in told {
                        refusal = refusal.and(message.error());
                    }
                }
                Err(Errno::WOULDBLOCK) => return refusal,
                Err(Errno::INTR) => {}
                Err(errno) => return refusal.and(Err(errno)),
            }
        }
    }

    /// Asks for one thing; `read` understands its body.
    pub(crate) fn ask<T>(&self, requests: &Requests, read: impl FnOnce(&[u8]) -> Option<T>) -> Result<T, Errno> {
        rustix::io::retry_on_intr(|| rustix::net::send(&self.0, &requests.bytes, SendFlags::empty()))?;
        let mut room = vec![0; RECEIVE_BYTES];
        let (length, _) = rustix::io::retry_on_intr(|| rustix::net::recv(&self.0, room.as_mut_slice(), RecvFlags::TRUNC))?;
        let answer = messages(&room[..length.min(RECEIVE_BYTES)]).next().ok_or(Errno::BADMSG)?;
        if answer.kind == ERROR {
            answer.error()?;
        }
        read(answer.body).ok_or(Errno::BADMSG)
    }

    /// Asks for a list; `take` gets the body of each entry.
    pub(crate) fn dump(&self, requests: &Requests, mut take: impl FnMut(&[u8])) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| rustix::net::send(&self.0, &requests.bytes, SendFlags::empty()))?;
        let mut room = vec![0; RECEIVE_BYTES];
        loop {
            let (length, _) = rustix::io::retry_on_intr(|| rustix::net::recv(&self.0, room.as_mut_slice(), RecvFlags::TRUNC))?;
            for message in messages(&room[..length.min(RECEIVE_BYTES)]) {
                match message.kind {
                    DONE => return message.error_unless_short(),
                    ERROR => return message.error(),
                    _ => take(message.body),
                }
            }
        }
    }

    fn make_room(&self, bytes: usize) -> Result<(), Errno> {
        // The default has room for more than any ordinary request; asking costs a system call.
        const ORDINARY: usize = 64 * 1024;
        if bytes <= ORDINARY {
            return Ok(());
        }
        if bytes > SEND_BUFFER_BYTES {
            return Err(Errno::MSGSIZE);
        }
        sockopt::set_socket_send_buffer_size_force(self.0.as_fd(), bytes)
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One message that the kernel sent.
struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

impl Message<'_> {
    /// What an error message tells; 0 is success.
    fn error(&self) -> Result<(), Errno> {
        let code = self.body.get(..4).map_or(-libc::EBADMSG, |code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
        if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code.saturating_neg())) }
    }

    /// The end of a dump tells of an error too, where it has a body.
    fn error_unless_short(&self) -> Result<(), Errno> {
        if self.body.len() < 4 { Ok(()) } else { self.error() }
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER_BYTES)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, body })
    })
}

/// Attributes that the kernel sent: type, without the bits that say how it is laid out, and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut requests = Requests::default();
        requests.add(7, libc::NLM_F_CREATE, &[1, 2, 3], |a| {
            a.u32(1, 5);
            a.nest(2, |a| a.text(3, "ab"));
        });
        requests.add(8, 0, &[], |_| {});
        assert_eq!(requests.bytes.len() % 4, 0);
        let both: Vec<_> = messages(&requests.bytes).collect();
        assert_eq!(both.iter().map(|message| message.kind).collect::<Vec<_>>(), [7, 8]);
        let found: Vec<_> = attributes(&both[0].body[4..]).collect();
        assert_eq!(found[0], (1, &5u32.to_ne_bytes()[..]));
        assert_eq!(attributes(found[1].1).collect::<Vec<_>>(), [(3, &b"ab\0"[..])]);
    }

    #[test]
    fn broken_messages_end_the_reading() {
        for length in [0u32, 3, 15, 17, u32::MAX] {
            let mut bytes = vec![0; 16];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(messages(&bytes).take(2).count() <= 1, "{length}");
        }
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0);
    }
}
