//! The steps of a launch: what is asked of a guest before its files are.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guestmnt_protocol::frame;
use guestmnt_protocol::limits::{MAX_PAYLOAD, MAX_REMARKS};
use guestmnt_protocol::message::{
    Answer, Dirty, Listing, MountRequest, MountedAs, Outcome, Request, TableProblem, Volume,
};
use guestmnt_protocol::path::EntryName;
use guestmnt_protocol::secret::Secret;
use guestmnt_protocol::system::System;
use guestmnt_protocol::volume::VolumeName;
use log::info;

use super::lane::Wait;
use super::pulse;
use super::{Guest, GuestError, SYNC_TIMEOUT};

/// How long a launch step may take, mounting among them: a journal may have to be replayed.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a key may take. LUKS2's default asks for some seconds of four processors; without KVM, one
/// of them does it, ten times slower. Whether the guest still runs is asked all the while.
const UNLOCK_TIMEOUT: Duration = Duration::from_secs(900);

impl Guest {
    /// Sets the guest's clock and feeds its random pool with `entropy`.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn wake(&self, entropy: [u8; 32]) -> Result<(), GuestError> {
        let request = Request::Wake { unix_time_ns: unix_time_ns(), entropy };
        let deadline = self.launch_deadline();
        match self.link(deadline)?.lane.call(&request, 0, deadline)?.0 {
            Ok(Answer::Awake { unix_time_ns: theirs, random }) => {
                let behind = unix_time_ns().abs_diff(theirs) / 1_000_000;
                info!(
                    "the guest's clock differs by {behind} ms, its random pool gives {random:02x?}"
                );
                Ok(())
            }
            Ok(_) => Err(GuestError::Unexpected),
            Err(failure) => Err(GuestError::Failed(failure)),
        }
    }

    /// Has the guest load all that a mount may need.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn prepare(&self) -> Result<(), GuestError> {
        self.launch_step(&Request::Prepare)
    }

    /// Waits until the guest sees `count` disks and their partitions. Returns what is the matter with
    /// partition tables, in the guest's words.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn await_disks(&self, count: u8) -> Result<Vec<TableProblem>, GuestError> {
        match self.launch_answer(&Request::AwaitDisks { count })? {
            Answer::Done => Ok(Vec::new()),
            Answer::Tables(problems) if problems.len() <= MAX_REMARKS => Ok(problems),
            _ => Err(GuestError::Unexpected),
        }
    }

    /// Mounts a filesystem. Returns what is to be said of it, in the guest's words.
    ///
    /// # Errors
    /// [`GuestError::Failed`] with the reason.
    pub fn mount(&self, request: MountRequest) -> Result<Vec<String>, GuestError> {
        let deadline = self.launch_deadline();
        match self.link(deadline)?.lane.call(&Request::Mount(request), 0, deadline)?.0 {
            Ok(Answer::Done) => Ok(Vec::new()),
            Ok(Answer::Remarked(None, remarks)) => Ok(remarks),
            Ok(_) => Err(GuestError::Unexpected),
            Err(failure) => Err(GuestError::Failed(failure)),
        }
    }

    /// Shows disks, partitions and what is assembled from them as files of the root directory,
    /// where nothing is mounted.
    ///
    /// # Errors
    /// [`GuestError::Failed`] with the reason.
    pub fn show_blocks(&self) -> Result<(), GuestError> {
        self.launch_step(&Request::Blocks)
    }

    /// Mounts a filesystem for writing, where it can and may be written. Returns how, and as
    /// [`Guest::mount`].
    ///
    /// # Errors
    /// [`GuestError::Failed`] with the reason.
    pub fn mount_writable(
        &self,
        mount: MountRequest,
        dirty: Dirty,
    ) -> Result<(MountedAs, Vec<String>), GuestError> {
        let request = Request::MountWritable { mount, dirty };
        let deadline = self.launch_deadline();
        match self.link(deadline)?.lane.call(&request, 0, deadline)?.0 {
            Ok(Answer::Mounted(how)) => Ok((how, Vec::new())),
            Ok(Answer::Remarked(Some(how), remarks)) => Ok((how, remarks)),
            Ok(_) => Err(GuestError::Unexpected),
            Err(failure) => Err(GuestError::Failed(failure)),
        }
    }

    /// Opens an encrypted volume.
    ///
    /// # Errors
    /// [`GuestError::Failed`] with `EACCES` for a key that does not fit, or with the reason.
    pub fn unlock(&self, volume: VolumeName, key: Secret) -> Result<(), GuestError> {
        let deadline = Instant::now() + UNLOCK_TIMEOUT.min(self.longest);
        let mut link = self.link(deadline)?;
        let runs = || self.beats();
        let wait = Wait { deadline, patience: pulse::patience(UNLOCK_TIMEOUT), runs: &runs };
        match link.lane.call(&Request::Unlock { volume, key }, 0, wait)?.0 {
            Ok(Answer::Done) => Ok(()),
            Ok(_) => Err(GuestError::Unexpected),
            Err(failure) => Err(GuestError::Failed(failure)),
        }
    }

    /// Whether the guest answers a greeting; where nobody can ask it, it is taken to run.
    fn beats(&self) -> bool {
        let Some(pulse) = &self.pulse else { return true };
        pulse.try_lock().map_or(true, |mut pulse| pulse.beats(pulse::patience(UNLOCK_TIMEOUT)))
    }

    /// Writes everything back and unmounts all.
    ///
    /// # Errors
    /// [`GuestError::Failed`] with what could not be written or unmounted.
    pub fn unmount(&self) -> Result<(), GuestError> {
        let deadline = Instant::now() + SYNC_TIMEOUT.min(self.longest);
        match self.link(deadline)?.lane.call(&Request::Unmount, 0, deadline)?.0 {
            Ok(Answer::Done) => Ok(()),
            Ok(_) => Err(GuestError::Unexpected),
            Err(failure) => Err(GuestError::Failed(failure)),
        }
    }

    /// Mounts a filesystem of the guest's own on `/`, with empty folders of these names in it.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn mount_folders(&self, names: Vec<EntryName>) -> Result<(), GuestError> {
        self.launch_step(&Request::Folders(names))
    }

    /// What is on the disks.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn volumes(&self) -> Result<Vec<Volume>, GuestError> {
        match self.launch_answer(&Request::Volumes)? {
            Answer::Volumes(volumes) => Ok(volumes),
            _ => Err(GuestError::Unexpected),
        }
    }

    /// What is on the disks, and what it is made of.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn listing(&self) -> Result<Listing, GuestError> {
        match self.launch_answer(&Request::Listing)? {
            Answer::Listing(listing) => Ok(listing),
            _ => Err(GuestError::Unexpected),
        }
    }

    /// The operating systems on the disks.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn systems(&self) -> Result<Vec<System>, GuestError> {
        match self.launch_answer(&Request::Inspect)? {
            Answer::Systems(systems) => Ok(systems),
            _ => Err(GuestError::Unexpected),
        }
    }

    /// The answer to a launch request, whether it is a body or, being long, a payload.
    fn launch_answer(&self, request: &Request) -> Result<Answer, GuestError> {
        let deadline = self.launch_deadline();
        let mut link = self.link(deadline)?;
        let answer = match link.lane.call(request, MAX_PAYLOAD, deadline)? {
            (Ok(Answer::Payload), payload) => {
                frame::decode_body::<Outcome>(payload).map_err(|_| GuestError::Unexpected)?
            }
            (outcome, []) => outcome,
            _ => return Err(GuestError::Unexpected),
        };
        answer.map_err(GuestError::Failed)
    }

    fn launch_deadline(&self) -> Instant {
        Instant::now() + LAUNCH_TIMEOUT.min(self.longest)
    }

    fn launch_step(&self, request: &Request) -> Result<(), GuestError> {
        let deadline = self.launch_deadline();
        match self.link(deadline)?.lane.call(request, 0, deadline)?.0 {
            Ok(Answer::Done) => Ok(()),
            Ok(_) => Err(GuestError::Unexpected),
            Err(failure) => Err(GuestError::Failed(failure)),
        }
    }
}

fn unix_time_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
