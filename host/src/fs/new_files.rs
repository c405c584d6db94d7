//! What a file that was just made is to hold and to be, kept until it is closed: then the guest gets
//! all of it in one request. Programs make a file, write it, give it times and permissions, and close
//! it; for a small one, requests cost the guest more than what they ask for.
//!
//! **Invariant:** what is kept was not yet answered for: a file that was closed or synced has nothing
//! here. Whoever asks the guest about the file has it take what is kept before.

use std::time::{Duration, Instant, SystemTime};

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::change::{NewAttributes, NewTime, Owner};

use super::view::since_1970;
use crate::guest::Update;

/// Bytes that are kept of a file.
const MOST: usize = 32 << 10;

/// What a file's blocks are counted in.
const SECTOR: u64 = 512;

/// How long after it was made something is kept of a file. The kernel hands over by itself, after some
/// seconds, what was written to a file that stays open: a log, which nobody may close for days.
const SOON: Duration = Duration::from_secs(1);

/// A file since it was made.
pub struct NewFile {
    made: Instant,
    /// What is known of it.
    attr: Attr,
    kept: Kept,
    /// Whether the guest has written some of it.
    is_written: bool,
}

/// What the guest has not been told yet. Bytes come before attributes.
#[derive(Default)]
pub struct Kept {
    /// The first bytes.
    pub bytes: Vec<u8>,
    /// What changes then.
    pub update: Update,
}

impl Kept {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.update == Update::default()
    }
}

impl NewFile {
    /// One of which this is known, and that was made now.
    #[must_use]
    pub fn new(attr: Attr) -> Self {
        Self { made: Instant::now(), attr, kept: Kept::default(), is_written: false }
    }

    /// Keeps bytes that are written at byte `offset` at this moment; not if they are too many, come
    /// late, or leave a gap. Then the guest has to take what was kept before it takes them.
    pub fn keep_bytes(&mut self, offset: u64, bytes: &[u8], now: Instant) -> bool {
        let Kept { bytes: kept, update } = &mut self.kept;
        let is_next = !self.is_written
            && *update == Update::default()
            && usize::try_from(offset) == Ok(kept.len());
        let keeps = is_next && kept.len() + bytes.len() <= MOST && is_soon(self.made, now);
        if keeps {
            kept.extend_from_slice(bytes);
            let size = kept.len() as u64;
            self.attr.size = self.attr.size.max(size);
            self.attr.blocks = self.attr.blocks.max(size.div_ceil(SECTOR));
        }
        keeps
    }

    /// Keeps attributes that change at this moment, and tells all as they will be. `None` for those
    /// that the filesystem may refuse, which has to be told at once, and for late ones.
    pub fn keep_attributes(&mut self, new: impl Into<Update>, now: Instant) -> Option<Attr> {
        let Update { attributes: new, changed } = new.into();
        if new.size.is_some() || new.owner != Owner::default() || !is_soon(self.made, now) {
            return None;
        }
        let given = |time| match time {
            NewTime::Now => since_1970(SystemTime::now()),
            NewTime::At(time) => time,
        };
        let Update { attributes: kept, changed: kept_changed } = &mut self.kept.update;
        if let Some(time) = changed {
            *kept_changed = changed;
            self.attr.changed = time;
        }
        if let Some(mode) = new.mode {
            kept.mode = Some(mode);
            self.attr.mode = self.attr.mode & libc::S_IFMT | mode;
        }
        if let Some(time) = new.accessed.map(given) {
            kept.accessed = Some(NewTime::At(time));
            self.attr.accessed = time;
        }
        if let Some(time) = new.modified.map(given) {
            kept.modified = Some(NewTime::At(time));
            self.attr.modified = time;
        }
        Some(self.attr)
    }

    /// Its attributes with what is kept; `None` where the guest knows them better. The kernel asks for
    /// them before each change of an owner.
    #[must_use]
    pub fn attr(&self) -> Option<Attr> {
        (!self.is_written).then_some(self.attr)
    }

    /// Whether something is kept.
    #[must_use]
    pub fn keeps_something(&self) -> bool {
        !self.kept.is_empty()
    }

    /// The attributes that are kept and `new` ones, which the guest has to be told now. `None` where
    /// these cannot come together: a change of the size sets times, and one of the owner takes
    /// permissions away.
    #[must_use]
    pub fn together_with(&self, new: impl Into<Update>) -> Option<Update> {
        let Update { attributes: new, changed } = new.into();
        let Update { attributes: kept, changed: kept_changed } = self.kept.update;
        let apart = new.size.is_some() || kept.mode.is_some();
        let accessed = new.accessed.or(kept.accessed);
        let modified = new.modified.or(kept.modified);
        let attributes = NewAttributes { accessed, modified, ..new };
        (!apart).then_some(Update { attributes, changed: changed.or(kept_changed) })
    }

    /// Notes what the guest told of it, which took what was kept.
    pub fn told(&mut self, attr: Attr) {
        self.attr = attr;
    }

    /// Takes what is kept, for the guest to write it before anything else. Further bytes are not
    /// kept.
    pub fn take(&mut self) -> Kept {
        self.is_written = true;
        std::mem::take(&mut self.kept)
    }

    /// All that is kept.
    #[must_use]
    pub fn into_kept(self) -> Kept {
        self.kept
    }
}

fn is_soon(made: Instant, now: Instant) -> bool {
    now.saturating_duration_since(made) < SOON
}

#[cfg(test)]
mod tests {
    use guestmnt_protocol::attr::Time;

    use super::*;

    fn file() -> NewFile {
        NewFile::new(Attr { mode: libc::S_IFREG | 0o644, nlink: 1, ..Attr::default() })
    }

    fn at(secs: i64) -> Option<NewTime> {
        Some(NewTime::At(Time { secs, nanos: 0 }))
    }

    #[test]
    fn bytes_are_kept_that_come_soon_and_one_behind_the_other() {
        let now = Instant::now();
        let mut new = file();
        assert!(new.keep_bytes(0, b"one", now) && new.keep_bytes(3, b"two", now));
        assert!(!new.keep_bytes(7, b"behind a gap", now) && !new.keep_bytes(0, b"again", now));
        assert!(!new.keep_bytes(6, &vec![0; MOST], now), "too many");
        assert!(!new.keep_bytes(6, b"late", now + 2 * SOON));
        assert_eq!(new.take().bytes, b"onetwo");
        assert!(!new.keep_bytes(0, b"the guest writes", now));
    }

    #[test]
    fn attributes_are_kept_and_told_as_they_will_be() {
        let now = Instant::now();
        let mut new = file();
        assert!(new.keep_bytes(0, b"some bytes", now));
        let times = NewAttributes { accessed: at(1), modified: at(2), ..Default::default() };
        let mode = NewAttributes { mode: Some(0o4600), modified: at(3), ..Default::default() };
        new.keep_attributes(times, now).unwrap();
        let changed = Time { secs: 4, nanos: 5 };
        let update = Update { attributes: mode, changed: Some(changed) };
        let told = new.keep_attributes(update, now).unwrap();
        assert_eq!(told.changed, changed);
        assert_eq!((told.mode, told.size, told.blocks), (libc::S_IFREG | 0o4600, 10, 1));
        assert_eq!(new.attr(), Some(told));
        assert_eq!((told.accessed.secs, told.modified.secs), (1, 3));
        assert!(!new.keep_bytes(10, b"bytes come first", now));
        let size = NewAttributes { size: Some(1), ..Default::default() };
        let owner = Owner { uid: Some(7), gid: None };
        let given = NewAttributes { owner, ..Default::default() };
        for told_at_once in [size, given] {
            assert!(new.keep_attributes(told_at_once, now).is_none());
        }
        assert!(new.keep_attributes(times, now + 2 * SOON).is_none());
        // A new owner would take away the bits that were set before.
        assert!(new.together_with(given).is_none());
        let kept = new.into_kept();
        let attributes = NewAttributes { accessed: at(1), ..mode };
        let update = Update { attributes, changed: Some(changed) };
        assert_eq!((kept.bytes.as_slice(), kept.update), (&b"some bytes"[..], update));
    }

    #[test]
    fn what_is_told_at_once_takes_along_what_was_kept() {
        let now = Instant::now();
        let mut new = file();
        let times = NewAttributes { modified: at(2), ..Default::default() };
        assert!(new.keep_bytes(0, b"bytes", now) && new.keep_attributes(times, now).is_some());
        let owner = Owner { uid: Some(7), gid: None };
        let together = new.together_with(NewAttributes { owner, ..Default::default() });
        assert_eq!(together, Some(NewAttributes { owner, ..times }.into()));
        let kept = new.take();
        assert_eq!((kept.bytes.as_slice(), kept.update), (&b"bytes"[..], times.into()));
        new.told(Attr { uid: 7, ..Attr::default() });
        assert!(!new.keep_bytes(0, b"the guest has some", now) && new.attr().is_none());
        assert_eq!(new.keep_attributes(times, now).unwrap().uid, 7);
    }
}
