//! What a read of the kernel becomes: bytes of a batch, bytes of the disk, or a request to the guest.
//!
//! Fewer bytes than asked for are a file's end to the kernel, and where files never change it forgets
//! for good what is behind it. So they are given only where the file's size says the same; the rest of
//! a short answer is asked for, once.

use guestmnt_protocol::limits::MAX_PAYLOAD;
use log::debug;
use nix::errno::Errno;

use super::layouts::Asked;
use super::nodes::{Entry, NodeId};
use super::operations::{Kept, Operations};
use super::stats::Way;

impl Operations {
    /// Hands up to `size` bytes at `offset` to `take`, and tells the way that they took; fewer come
    /// only at the file's end.
    ///
    /// # Errors
    /// As [`Operations::get_attr`]; `EIO` where the guest gives less than the file has; `take` was not
    /// called then.
    pub fn read(
        &self,
        id: NodeId,
        offset: u64,
        size: u32,
        take: impl FnOnce(&[u8]),
    ) -> Result<Way, Errno> {
        let Some(kept) = &self.kept else {
            self.guest.read(self.nodes.path(id)?, offset, size, take)?;
            return Ok(Way::Guest);
        };
        let entry = self.nodes.entry(id);
        let length = entry.as_ref().map_or(0, |entry| entry.size);
        let there = within(length, offset, size);
        let goes_on = offset.saturating_add(size.into()) < length;
        let volume = entry.as_ref().map(|entry| entry.volume);
        let asked = Asked { node: id, volume, offset, size, goes_on };
        self.buffers.with(|buffer| match self.read_here(kept, entry, &asked, there, buffer) {
            Some(way) => {
                self.stats.ways.request(way);
                self.stats.ways.bytes(buffer.len());
                take(buffer);
                Ok(way)
            }
            None => {
                self.stats.ways.request(Way::Guest);
                self.read_by_guest(kept, &asked, there, buffer, |bytes| {
                    self.stats.ways.bytes(bytes.len());
                    take(bytes);
                })?;
                Ok(Way::Guest)
            }
        })
    }

    /// Replaces `buffer` by what is asked for, of which the file has the bytes `there`, and tells the
    /// way that it took. `None` where the guest has to read it; `buffer` holds nothing of use then.
    fn read_here(
        &self,
        kept: &Kept,
        entry: Option<Entry>,
        asked: &Asked,
        there: usize,
        buffer: &mut Vec<u8>,
    ) -> Option<Way> {
        let &Asked { node, offset, size, .. } = asked;
        let together = entry.and_then(|entry| kept.folders.read(&entry, offset, size, buffer));
        if together.is_some() && buffer.len() >= there {
            return together;
        }
        if !kept.layouts.read(asked, || self.nodes.path(node), buffer) {
            return None;
        }
        if buffer.len() < there {
            kept.layouts.distrust(node);
            return None;
        }
        Some(Way::Disk)
    }

    /// Hands what the guest has of what is asked for to `take`, where it lies if it is all there.
    fn read_by_guest(
        &self,
        kept: &Kept,
        asked: &Asked,
        there: usize,
        buffer: &mut Vec<u8>,
        take: impl FnOnce(&[u8]),
    ) -> Result<(), Errno> {
        let &Asked { node, offset, size, .. } = asked;
        let path = || self.nodes.path(node);
        let mut take = Some(take);
        kept.read_ahead.read(node, path, offset, size, |bytes| {
            kept.layouts.was_read(node, offset, bytes);
            if bytes.len() < there {
                // The lane that they are in may be needed for the others.
                buffer.clear();
                buffer.extend_from_slice(bytes);
            } else if let Some(take) = take.take() {
                take(bytes);
            }
        })?;
        let Some(take) = take else { return Ok(()) };
        debug!("the guest gave {} of {there} bytes, and is asked for the others", buffer.len());
        let at = offset + buffer.len() as u64;
        let left = u32::try_from(there - buffer.len()).expect("less than a payload");
        self.guest.read(path()?, at, left, |bytes| buffer.extend_from_slice(bytes))?;
        if buffer.len() < there {
            return Err(Errno::EIO);
        }
        take(buffer);
        Ok(())
    }
}

/// How many of `size` bytes at `offset` a file of `length` bytes has, up to a payload.
fn within(length: u64, offset: u64, size: u32) -> usize {
    let left = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX);
    left.min(size as usize).min(MAX_PAYLOAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_has_of_a_request_is_told_whatever_the_numbers() {
        let numbers = [0, 1, 9, 10, 11, MAX_PAYLOAD as u64, u64::from(u32::MAX), u64::MAX];
        let asked = numbers.into_iter().flat_map(|offset| numbers.map(|length| (offset, length)));
        for (offset, length) in asked {
            for size in [0, 1, 10, 1 << 20, u32::MAX] {
                let end = u128::from(offset) + u128::from(size);
                let expected = u128::from(length).min(end).saturating_sub(offset.into());
                let expected = expected.min(MAX_PAYLOAD as u128);
                assert_eq!(within(length, offset, size) as u128, expected);
            }
        }
    }
}
