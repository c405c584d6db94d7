//! Contents of small files that are fetched together: who fetches them, what becomes of what comes,
//! and whether the guest is believed where it says that they are.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use guestmnt_protocol::batch::{Plain, Stored, Wanted};
use guestmnt_protocol::path::{EntryName, GuestPath};
use log::debug;
use nix::errno::Errno;

use super::folders::{Folder, Shared};
use super::layouts::varies;
use super::nodes::Lifetime;
use super::small_files::Arrived;
use crate::guest::Contents;

/// Files whose contents are fetched together.
pub struct Batch {
    pub key: Lifetime,
    pub volume: u16,
    pub path: GuestPath,
    pub files: Vec<Wanted>,
}

/// Batches that nobody waited for when they were planned.
#[derive(Default)]
pub struct Batches {
    planned: VecDeque<Batch>,
    /// No others are planned any more.
    ended: bool,
}

impl Batches {
    /// Plans another one, to be fetched behind the others.
    pub fn plan(&mut self, batch: Batch) {
        self.planned.push_back(batch);
    }

    /// The planned batch that the file `name` of the folder `key` is in, if nobody fetches that yet:
    /// who needs it now fetches it.
    pub fn take_back(&mut self, key: Lifetime, name: &EntryName) -> Option<Batch> {
        let is_in = |batch: &Batch| {
            batch.key == key && batch.files.iter().any(|wanted| wanted.file.name == *name)
        };
        let place = self.planned.iter().position(is_in)?;
        self.planned.remove(place)
    }

    /// What is planned is not fetched any more.
    pub fn end(&mut self) {
        self.planned.clear();
        self.ended = true;
    }
}

impl Shared {
    /// Fetches what is planned, until there is nobody left to plan.
    pub fn fetch_planned(&self) {
        let mut state = self.lock();
        while !state.batches.ended {
            state = match state.batches.planned.pop_front() {
                Some(batch) => {
                    drop(state);
                    self.fetch(batch);
                    self.lock()
                }
                None => self.planned.wait(state).expect(Self::UNPOISONED),
            };
        }
    }

    /// Has the guest read a batch, and wakes those who wait for its files.
    pub fn fetch(&self, batch: Batch) {
        let Batch { key, volume, path, files } = batch;
        let names: Vec<EntryName> = files.iter().map(|wanted| wanted.file.name.clone()).collect();
        let believed = self.lock().believed.get(&volume).copied();
        let readable = self.disks.iter().any(Option::is_some) && believed != Some(false);
        let plain = if readable { Plain::Places } else { Plain::Bytes };
        let mut arrived: Vec<Result<Arrived, Errno>> = Vec::with_capacity(names.len());
        let result = self.guest.read_files(path.clone(), plain, files, |_, contents| {
            arrived.push(contents.map(|contents| match contents {
                Contents::Bytes(bytes) => Arrived::Bytes(bytes.into()),
                Contents::Stored(stored) => Arrived::Stored(stored),
            }));
        });
        let believed = believed.or_else(|| self.judge(&path, &names, &arrived));
        let mut state = self.lock();
        state.believed.extend(believed.map(|believed| (volume, believed)));
        state.change(key, |Folder { listing, files, .. }| {
            let mut arrived = arrived.into_iter();
            for name in &names {
                let file = arrived.next();
                // What was kept of the folder may be another listing by now.
                let Some(index) = listing.find(name) else { continue };
                match file {
                    Some(Ok(Arrived::Stored(_))) if believed != Some(true) => files.failed(index),
                    Some(file) => files.arrived(listing, index, file),
                    None => files.failed(index),
                }
            }
        });
        drop(state);
        if let Err(errno) = result {
            debug!("a batch of small files failed: {errno}");
        }
        self.arrived.notify_all();
    }

    /// Whether the first of these files that is said to be on a disk, and that tells something of its
    /// place, has the same bytes there as the guest gives. `None` where there is none.
    fn judge(
        &self,
        folder: &GuestPath,
        names: &[EntryName],
        files: &[Result<Arrived, Errno>],
    ) -> Option<bool> {
        let mut here = Vec::new();
        for (name, file) in names.iter().zip(files) {
            let Ok(Arrived::Stored(stored)) = file else { continue };
            let read = self.read_stored(stored, 0, stored.length, &mut here);
            if read.is_ok() && !varies(&here) {
                continue;
            }
            let path = folder.join(name).ok()?;
            // A copy: what is looked at must not change meanwhile.
            let theirs = self.guest.read(path, 0, stored.length, <[u8]>::to_vec).ok()?;
            let same = read.is_ok() && here == theirs;
            if !same {
                debug!("small files are not where the guest says");
            }
            return Some(same);
        }
        None
    }

    /// Replaces `buffer` by up to `size` bytes at `offset` of a file that is on a disk.
    pub fn read_stored(
        &self,
        stored: &Stored,
        offset: u64,
        size: u32,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        let disk = self.disks.get(usize::from(stored.disk)).and_then(Option::as_ref);
        let disk = disk.ok_or(io::ErrorKind::Unsupported)?;
        let part = part(stored.length as usize, offset, size);
        let start = stored.place.checked_add(part.start as u64);
        buffer.resize(part.len(), 0);
        disk.read(buffer, start.ok_or(io::ErrorKind::InvalidInput)?)
    }
}

/// The part of a file of `length` bytes that `size` bytes from `offset` on are.
pub fn part(length: usize, offset: u64, size: u32) -> Range<usize> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(length);
    start..length.min(start.saturating_add(size as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_within_the_file_whatever_the_numbers() {
        for offset in [0, 1, 9, 10, 11, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            for size in [0, 1, 9, 10, u32::MAX] {
                let end = u128::from(offset) + u128::from(size);
                let expected = (0..10u128).filter(|n| (u128::from(offset)..end).contains(n));
                let found = part(10, offset, size).map(|n| n as u128);
                assert!(found.eq(expected), "{size} bytes at {offset}");
            }
        }
    }
}
