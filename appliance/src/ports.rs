//! The virtio-serial ports that are lanes: finding them by name, and one worker thread for each.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{io, thread};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use guestmnt_protocol::limits::MAX_LANES;

use crate::guest::Guest;
use crate::kmsg;
use crate::serve::{LaneError, serve};

const PORTS: &str = "/sys/class/virtio-ports";
const LANE: &str = "guestmnt.lane.";

/// Bytes of a worker's stack, all of which a template holds. Serving takes some 20 KiB.
const LANE_STACK: usize = 256 << 10;

/// The lanes that have a worker.
pub struct Lanes {
    guest: Arc<Guest>,
    served: BTreeSet<usize>,
}

impl Lanes {
    /// No lanes yet, of `guest`.
    pub fn of(guest: Arc<Guest>) -> Self {
        Self { guest, served: BTreeSet::new() }
    }

    /// Starts a worker for each lane that is there and has none.
    ///
    /// A port gets its name by a message of its own some time after it was announced, and is
    /// announced once more then (`action` `change`); until then it is no lane here.
    pub fn serve_new(&mut self) {
        let Ok(ports) = fs::read_dir(PORTS) else { return };
        for port in ports.flatten() {
            let Some(lane) = lane_number(&port.path()) else { continue };
            if !self.served.contains(&lane) {
                let node = Path::new("/dev").join(port.file_name());
                match self.start(lane, node) {
                    Ok(()) => drop(self.served.insert(lane)),
                    Err(error) => kmsg::warn(format_args!("lane {lane}: no worker: {error}")),
                }
            }
        }
    }

    fn start(&self, lane: usize, node: PathBuf) -> io::Result<()> {
        let guest = Arc::clone(&self.guest);
        thread::Builder::new()
            .name(format!("lane-{lane}"))
            .stack_size(LANE_STACK)
            .spawn(move || serve_port(lane, &node, &guest))
            .map(drop)
    }
}

/// The number of the lane that the port with this directory in sysfs is.
fn lane_number(port: &Path) -> Option<usize> {
    parse_lane(&fs::read_to_string(port.join("name")).ok()?)
}

fn parse_lane(name: &str) -> Option<usize> {
    let number = name.trim_end().strip_prefix(LANE)?;
    number.parse().ok().filter(|&lane| lane < MAX_LANES)
}

/// Serves one port for as long as the guest runs.
fn serve_port(lane: usize, node: &Path, guest: &Guest) {
    loop {
        // Closing and opening the port throws away what had arrived in it: after a frame that is
        // none, a new beginning is all that there is.
        if let Err(error) = serve_connections(node, guest) {
            kmsg::warn(format_args!("lane {lane}: {error}"));
            if matches!(error, LaneError::Port(_)) {
                return; // The device is gone or broken; trying again would only spin.
            }
        }
    }
}

/// Serves one connection after the other, until one ends badly.
fn serve_connections(node: &Path, guest: &Guest) -> Result<(), LaneError> {
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(node)
        .map_err(|error| LaneError::Port(crate::failure::errno_of(&error)))?;
    let connection = Connection::watch(&port).map_err(LaneError::Port)?;
    loop {
        serve(&port, guest)?;
        connection.wait_for_change().map_err(LaneError::Port)?;
    }
}

/// Tells when something changes on a port to which nobody is connected. Reading such a port
/// gives 0 at once, and poll(2) says POLLHUP at once, so that both would spin. Edge-triggered,
/// epoll(7) reports the state that it found once, and then sleeps until the driver wakes the port's
/// waiters, which it does when the host connects.
struct Connection(Epoll);

impl Connection {
    fn watch(port: &File) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(port, EpollEvent::new(events, 0))?;
        Ok(Self(epoll))
    }

    fn wait_for_change(&self) -> nix::Result<()> {
        let mut events = [EpollEvent::empty()];
        match self.0.wait(&mut events, EpollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lanes_of_the_protocol_are_served() {
        let table = [
            ("guestmnt.lane.0\n", Some(0)),
            ("guestmnt.lane.15", Some(15)),
            ("guestmnt.lane.16", None),
            ("guestmnt.lane.", None),
            ("guestmnt.lane.-1", None),
            ("org.qemu.guest_agent.0", None),
            ("", None),
        ];
        for (name, lane) in table {
            assert_eq!(parse_lane(name), lane, "{name:?}");
        }
    }
}
