//! The kernel's announcements of devices, as they come over netlink.
//!
//! Follows lib/kobject_uevent.c: `action@path`, then `KEY=value` strings, each with a NUL behind
//! it.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};

/// The kernel's own messages; udev's are another group.
const KERNEL_GROUP: u32 = 1;

/// Bytes that may wait to be received. A disk announces itself some ten times, each time with
/// some 2 KiB of bookkeeping; this holds what 255 disks say at once. It is not taken before.
const QUEUE_MAX: usize = 8 << 20;

/// Bytes of a message: UEVENT_BUFFER_SIZE (2 KiB) of strings and the line before them.
const MESSAGE_MAX: usize = 8 << 10;

/// Everything that is announced from the moment on when this was opened.
pub struct Uevents {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// Events were lost, and what had been queued before is still to be read.
    lost: bool,
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Announced<'a> {
    /// One event.
    Event(Uevent<'a>),
    /// There were more events than there was room for. The queue is empty now: as long as it was
    /// not, the kernel dropped everything else without another word.
    Lost,
}

/// One event, in the kernel's words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uevent<'a> {
    /// `add`, `remove`, `change`, …
    pub action: &'a str,
    /// The device's path below `/sys`.
    pub path: &'a str,
    /// `block`, `virtio-ports`, …
    pub subsystem: &'a str,
    /// `disk` or `partition` in the subsystem `block`; empty in most others.
    pub device_type: &'a str,
    /// Whether the device has another size than before.
    pub resized: bool,
}

impl Uevents {
    /// Begins to listen.
    ///
    /// # Errors
    /// As socket(2) and bind(2).
    pub fn open() -> nix::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_MAX)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self { socket, buffer: vec![0; MESSAGE_MAX], lost: false })
    }

    /// Waits for the next event.
    ///
    /// Senders are not checked: only root could send here, and in the
    /// guest nothing but the daemon runs.
    ///
    /// # Errors
    /// As recv(2).
    pub fn next(&mut self) -> nix::Result<Announced<'_>> {
        let length = loop {
            let flags = if self.lost { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) => break length,
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => self.lost = true,
                Err(Errno::EAGAIN) if self.lost => {
                    self.lost = false;
                    return Ok(Announced::Lost);
                }
                Err(errno) => return Err(errno),
            }
        };
        Ok(Announced::Event(Uevent::parse(&self.buffer[..length])))
    }
}

impl<'a> Uevent<'a> {
    /// Reads a message. What it does not say stays empty; no device's path or subsystem is.
    fn parse(message: &'a [u8]) -> Self {
        let mut strings =
            message.split(|&b| b == 0).filter_map(|bytes| std::str::from_utf8(bytes).ok());
        let Some((action, path)) = strings.next().and_then(|first| first.split_once('@')) else {
            return Self::default();
        };
        let mut event = Self { action, path, ..Self::default() };
        for string in strings {
            match string.split_once('=') {
                Some(("SUBSYSTEM", value)) => event.subsystem = value,
                Some(("DEVTYPE", value)) => event.device_type = value,
                Some(("RESIZE", value)) => event.resized = value == "1",
                _ => {}
            }
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_the_kernel_writes_it() {
        let message = b"add@/devices/virtio0/host0/target0:0:0/0:0:0:0/block/sda\0ACTION=add\0\
            DEVPATH=/devices/virtio0/host0/target0:0:0/0:0:0:0/block/sda\0SUBSYSTEM=block\0\
            MAJOR=8\0MINOR=0\0DEVNAME=sda\0DEVTYPE=disk\0DISKSEQ=1\0SEQNUM=853\0";
        let expected = Uevent {
            action: "add",
            path: "/devices/virtio0/host0/target0:0:0/0:0:0:0/block/sda",
            subsystem: "block",
            device_type: "disk",
            resized: false,
        };
        assert_eq!(Uevent::parse(message), expected);
    }

    #[test]
    fn a_new_size_is_told_from_other_changes() {
        let change = "change@/devices/virtio1/block/vda\0SUBSYSTEM=block\0DEVTYPE=disk\0";
        assert!(Uevent::parse(format!("{change}RESIZE=1\0").as_bytes()).resized);
        assert!(!Uevent::parse(format!("{change}DISK_RO=1\0").as_bytes()).resized);
    }

    #[test]
    fn what_is_no_message_says_nothing() {
        for bytes in [&b""[..], b"libudev\0\xfe\xed\xca\xfe", b"\xff@\0SUBSYSTEM=block\0"] {
            assert_eq!(Uevent::parse(bytes), Uevent::default());
        }
    }
}
