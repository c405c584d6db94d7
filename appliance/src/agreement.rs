//! What the driver of NTFS and the records of a volume's files were found to agree on.
//!
//! The driver is asked for the first file of each [`Class`], once for what stat(2) says and once for
//! what the file holds. Where it says anything else than the record, it is asked for all files of
//! the volume from then on.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guestmnt_protocol::attr::Attr;

use crate::kmsg;
use crate::ordinary::Facts;

/// What makes a file differ from others in how its record is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class(u8);

impl Class {
    /// What it holds is in its record.
    pub const RESIDENT: Self = Self(1);
    /// It is in several pieces, or not valid to its end.
    pub const IN_PART: Self = Self(1 << 1);
    /// It has several links.
    pub const LINKS: Self = Self(1 << 2);
    /// Its attributes say that it is read-only.
    pub const READ_ONLY: Self = Self(1 << 3);
    /// It has other streams.
    pub const STREAMS: Self = Self(1 << 4);
    /// It has a short name for DOS.
    pub const SHORT_NAME: Self = Self(1 << 5);
    /// It has an object id, or a security descriptor of its own.
    pub const MORE_ATTRIBUTES: Self = Self(1 << 6);

    /// This class with what makes `other` special.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Likewise, if `condition` holds.
    #[must_use]
    pub fn with_if(self, condition: bool, other: Self) -> Self {
        if condition { self.with(other) } else { self }
    }
}

/// A set of classes.
#[derive(Default)]
struct Classes([AtomicU64; 4]);

impl Classes {
    fn word(&self, Class(bits): Class) -> (&AtomicU64, u64) {
        (&self.0[usize::from(bits / 64)], 1 << (bits % 64))
    }

    fn contains(&self, class: Class) -> bool {
        let (word, bit) = self.word(class);
        word.load(Ordering::Acquire) & bit != 0
    }

    fn insert(&self, class: Class) {
        let (word, bit) = self.word(class);
        word.fetch_or(bit, Ordering::AcqRel);
    }
}

/// What the records of a volume may be believed.
#[derive(Default)]
pub struct Agreement {
    /// A file that can be written, as the driver says: owner and permissions are the same for all.
    example: OnceLock<Attr>,
    attributes: Classes,
    contents: Classes,
    is_broken: AtomicBool,
}

impl Agreement {
    /// Whether the driver said anything else than a record.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    /// Whether the driver agreed on the attributes of a file, and with no record it did not.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.example.get().is_some() && !self.is_broken()
    }

    /// Attributes of the file with these facts. The driver says what they are where `ask` does, as it
    /// does for the first file of each class.
    pub fn attr(&self, facts: &Facts, ask: impl FnOnce() -> Option<Attr>) -> Option<Attr> {
        let is_known = !self.is_broken() && self.attributes.contains(facts.class());
        if let Some(example) = self.example.get().filter(|_| is_known) {
            return Some(facts.like(example));
        }
        let attr = ask()?;
        if !self.is_broken() {
            self.compare(facts, &attr);
        }
        Some(attr)
    }

    fn compare(&self, facts: &Facts, attr: &Attr) {
        if !facts.agree_with(attr) {
            return self.break_off(attr.ino);
        }
        let example = match self.example.get() {
            None if !facts.is_writable() => return,
            example => example.unwrap_or_else(|| self.example.get_or_init(|| *attr)),
        };
        if facts.like(example) == *attr {
            self.attributes.insert(facts.class());
        } else {
            self.break_off(attr.ino);
        }
    }

    /// Whether the record of the file with these facts may be believed as to what the file holds. For
    /// the first file of each class `is_same` says whether the driver gives that; `None` where it
    /// gives nothing.
    pub fn has_contents(&self, facts: &Facts, is_same: impl FnOnce() -> Option<bool>) -> bool {
        if self.is_broken() {
            return false;
        }
        if !self.contents.contains(facts.class()) {
            match is_same() {
                Some(true) => self.contents.insert(facts.class()),
                Some(false) => self.break_off(facts.number()),
                None => {}
            }
        }
        self.contents.contains(facts.class()) && !self.is_broken()
    }

    fn break_off(&self, inode: u64) {
        if !self.is_broken.swap(true, Ordering::AcqRel) {
            kmsg::warn(format_args!("the driver of NTFS and inode {inode} do not agree"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::ordinary::tests::facts;

    fn writable() -> Attr {
        Attr { mode: libc::S_IFREG | 0o755, nlink: 1, ..Attr::default() }
    }

    /// Attributes of a file of this class as `agreement` gives them, and whether the driver was asked,
    /// which says `shown`.
    fn asked(agreement: &Agreement, class: Class, shown: Attr) -> (Option<Attr>, bool) {
        let was_asked = Cell::new(false);
        let ask = || {
            was_asked.set(true);
            Some(shown)
        };
        (agreement.attr(&facts(class, &shown), ask), was_asked.get())
    }

    #[test]
    fn the_driver_is_asked_for_the_first_file_of_each_class() {
        let agreement = Agreement::default();
        assert!(!agreement.has_begun());
        let read_only = Attr { mode: libc::S_IFREG | 0o555, ..writable() };
        // One that is read-only tells nothing of those that are not.
        assert!(asked(&agreement, Class::READ_ONLY, read_only).1 && !agreement.has_begun());
        for class in [Class::default(), Class::RESIDENT, Class::STREAMS.with(Class::LINKS)] {
            for expected in [true, false, false] {
                assert_eq!(asked(&agreement, class, writable()), (Some(writable()), expected));
            }
        }
        for expected in [true, false] {
            let found = asked(&agreement, Class::READ_ONLY, read_only);
            assert_eq!(found, (Some(read_only), expected));
        }
        assert!(agreement.has_begun());
    }

    #[test]
    fn one_file_that_differs_leaves_all_to_the_driver() {
        let agreement = Agreement::default();
        asked(&agreement, Class::default(), writable());
        assert!(!asked(&agreement, Class::default(), writable()).1);
        let other = Attr { size: 5, ..writable() };
        let said = agreement.attr(&facts(Class::STREAMS, &writable()), || Some(other));
        assert_eq!(said, Some(other));
        assert!(agreement.is_broken() && !agreement.has_begun());
        assert!(asked(&agreement, Class::default(), writable()).1);
        assert!(!agreement.has_contents(&facts(Class::default(), &writable()), || Some(true)));
    }

    #[test]
    fn another_owner_than_that_of_the_first_file_is_no_agreement() {
        let agreement = Agreement::default();
        asked(&agreement, Class::default(), writable());
        asked(&agreement, Class::RESIDENT, Attr { uid: 1000, ..writable() });
        assert!(agreement.is_broken());
    }

    #[test]
    fn contents_of_the_first_file_of_each_class_are_compared() {
        let agreement = Agreement::default();
        let facts = |class| facts(class, &writable());
        let never = || panic!("it is known");
        for class in [Class::default(), Class::RESIDENT] {
            // The driver could not read it: the next one will tell.
            assert!(!agreement.has_contents(&facts(class), || None));
            assert!(agreement.has_contents(&facts(class), || Some(true)));
            assert!(agreement.has_contents(&facts(class), never));
        }
        assert!(!agreement.has_contents(&facts(Class::IN_PART), || Some(false)));
        assert!(!agreement.has_contents(&facts(Class::RESIDENT), never));
    }
}
