//! What is known of the extended attributes of a folder's files.
//!
//! The kernel caches none of them for FUSE, and programs that copy or list ask for several of
//! each file, mostly to hear that there is none. So the attributes of many files come in one
//! request, and further questions are answered from here, as the guest would answer them.

use std::collections::HashMap;
use std::mem::size_of;

use guestmnt_protocol::batch::Numbered;
use guestmnt_protocol::path::EntryName;
use guestmnt_protocol::xattr::{Xattr, XattrName};
use nix::errno::Errno;

use super::listing::Listing;

/// Files whose attributes are asked for at once.
const AT_ONCE: usize = 256;

/// Errors of attributes that are not there which are kept.
const MAX_ABSENCES: usize = 1024;

/// What each file of a folder has.
#[derive(Default)]
pub struct Xattrs {
    files: HashMap<EntryName, Result<Vec<Xattr>, Errno>>,
    bytes: usize,
}

/// What is known of one attribute of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Known {
    /// Its value.
    Value(Vec<u8>),
    /// That the file does not have it.
    Absent,
    /// Nothing: it is large, or not among those that are listed.
    Nothing,
}

impl Xattrs {
    /// The files to ask for together with `name`: those around it in the folder's listing of which
    /// nothing is known, as many as fit into a request.
    #[must_use]
    pub fn batch(&self, name: &EntryName, listing: &Listing) -> Vec<Numbered> {
        let Some(index) = listing.find(name) else {
            return vec![Numbered { name: name.clone(), number: 0 }];
        };
        let start = index - index % AT_ONCE;
        let end = listing.len().min(start + AT_ONCE);
        // The guest answers for as many as it can, from the first on.
        let others = (start..end).filter(|&other| other != index);
        let all = std::iter::once(index).chain(others);
        let unknown = all.filter(|&index| !self.is_known(listing.name(index)));
        let batch = listing.nameable(unknown.collect());
        batch.into_iter().map(|index| listing.numbered(index)).collect()
    }

    /// The attributes of a file have arrived, or the error of listing them.
    pub fn arrived(&mut self, name: EntryName, xattrs: Result<Vec<Xattr>, Errno>) {
        let cost = |xattr: &Xattr| {
            let value = xattr.value.as_ref().map_or(0, |value| value.as_bytes().len());
            size_of::<Xattr>() + xattr.name.as_bytes().len() + value
        };
        let xattrs_bytes = xattrs.as_ref().map_or(0, |xattrs| xattrs.iter().map(cost).sum());
        let name_bytes = name.as_bytes().len();
        if self.files.insert(name, xattrs).is_none() {
            self.bytes += xattrs_bytes + name_bytes + 96;
        }
    }

    /// Whether the attributes of a file have arrived.
    #[must_use]
    pub fn is_known(&self, name: &EntryName) -> bool {
        self.files.contains_key(name)
    }

    /// The names of a file's attributes, each with a NUL behind it. `None` where nothing is known.
    #[must_use]
    pub fn list(&self, name: &EntryName) -> Option<Result<Vec<u8>, Errno>> {
        let names = |xattrs: &Vec<Xattr>| {
            xattrs
                .iter()
                .flat_map(|xattr| [xattr.name.as_bytes(), b"\0"])
                .flatten()
                .copied()
                .collect()
        };
        Some(self.files.get(name)?.as_ref().map(names).map_err(|errno| *errno))
    }

    /// What is known of a file's attribute.
    #[must_use]
    pub fn find(&self, file: &EntryName, name: &XattrName) -> Known {
        let Some(Ok(xattrs)) = self.files.get(file) else { return Known::Nothing };
        match xattrs.iter().find(|xattr| xattr.name == *name) {
            Some(Xattr { value: Some(value), .. }) => Known::Value(value.as_bytes().to_vec()),
            Some(Xattr { value: None, .. }) => Known::Nothing,
            None if is_always_listed(name) => Known::Absent,
            None => Known::Nothing,
        }
    }

    /// Bytes that it takes, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Whether every filesystem lists an attribute of this name where there is one. There are others,
/// such as `system.ntfs_attrib`, that can be read and are never listed.
fn is_always_listed(name: &XattrName) -> bool {
    const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    const LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    let name = name.as_bytes();
    LISTS.contains(&name) || NAMESPACES.iter().any(|namespace| name.starts_with(namespace))
}

/// Where an attribute is missing in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The volume.
    pub volume: u16,
    /// The type bits of the file's mode.
    pub kind: u32,
    /// The attribute.
    pub name: XattrName,
}

/// What the guest says of attributes that a file does not have. It depends on the filesystem
/// and on the file's type, and is heard once for each of these: `ENODATA`, or `EOPNOTSUPP` where
/// no file could have it.
#[derive(Default)]
pub struct Absences(HashMap<Place, Errno>);

impl Absences {
    /// What the guest said.
    #[must_use]
    pub fn get(&self, place: &Place) -> Option<Errno> {
        self.0.get(place).copied()
    }

    /// Notes what the guest said, if it is about what was asked.
    pub fn note(&mut self, place: Place, errno: Errno) {
        if matches!(errno, Errno::ENODATA | Errno::EOPNOTSUPP) && self.0.len() < MAX_ABSENCES {
            self.0.insert(place, errno);
        }
    }
}

#[cfg(test)]
mod tests {
    use guestmnt_protocol::xattr::SmallValue;

    use super::super::listing::tests::listing;
    use super::*;

    fn name(text: &str) -> XattrName {
        XattrName::new(text.as_bytes()).unwrap()
    }

    fn file(text: &str) -> EntryName {
        EntryName::new(text.as_bytes()).unwrap()
    }

    fn xattr(text: &str, value: Option<&[u8]>) -> Xattr {
        Xattr { name: name(text), value: value.map(|value| SmallValue::new(value).unwrap()) }
    }

    #[test]
    fn what_arrived_answers_for_lists_and_values() {
        let mut xattrs = Xattrs::default();
        let [some, closed, other] = ["some", "closed", "other"].map(file);
        let two = vec![xattr("user.b", Some(b"1")), xattr("user.a", None)];
        xattrs.arrived(some.clone(), Ok(two));
        xattrs.arrived(closed.clone(), Err(Errno::EACCES));
        assert_eq!(xattrs.list(&some), Some(Ok(b"user.b\0user.a\0".to_vec())));
        assert_eq!(xattrs.list(&closed), Some(Err(Errno::EACCES)));
        assert_eq!(xattrs.list(&other), None);
        let table = [
            (&some, "user.b", Known::Value(b"1".to_vec())),
            (&some, "user.a", Known::Nothing),
            (&some, "security.capability", Known::Absent),
            (&some, "system.posix_acl_access", Known::Absent),
            (&some, "system.ntfs_attrib", Known::Nothing),
            (&closed, "user.b", Known::Nothing),
            (&other, "user.b", Known::Nothing),
        ];
        for (file, text, expected) in table {
            assert_eq!(xattrs.find(file, &name(text)), expected, "{file:?} {text}");
        }
    }

    #[test]
    fn a_batch_begins_with_the_file_that_was_asked_for() {
        let names: Vec<String> = (0..1000).map(|n| format!("{n:04}")).collect();
        let files: Vec<_> = names.iter().map(|name| (name.as_str(), 1, 1)).collect();
        let (mut xattrs, listing) = (Xattrs::default(), listing(&files));
        let batch = |xattrs: &Xattrs, name| -> Vec<EntryName> {
            let batch = xattrs.batch(&file(name), &listing);
            batch.into_iter().map(|file| file.name).collect()
        };
        let around = batch(&xattrs, "0300");
        assert_eq!((around.len(), &around[0], &around[1]), (256, &file("0300"), &file("0256")));
        assert_eq!(batch(&xattrs, "0999").len(), 1000 - 3 * 256);
        xattrs.arrived(file("0256"), Ok(Vec::new()));
        assert_eq!(batch(&xattrs, "0300")[1], file("0257"));
        assert_eq!(batch(&xattrs, "unlisted"), [file("unlisted")]);
    }

    #[test]
    fn only_what_says_that_there_is_none_is_kept() {
        let mut absences = Absences::default();
        let place = |text: &str| Place { volume: 0, kind: libc::S_IFREG, name: name(text) };
        for (text, errno) in [
            ("a", Errno::ENODATA),
            ("b", Errno::EOPNOTSUPP),
            ("c", Errno::EIO),
            ("d", Errno::E2BIG),
        ] {
            absences.note(place(text), errno);
        }
        let known = ["a", "b", "c", "d"].map(|text| absences.get(&place(text)));
        assert_eq!(known, [Some(Errno::ENODATA), Some(Errno::EOPNOTSUPP), None, None]);
        for n in 0..2 * MAX_ABSENCES {
            absences.note(place(&n.to_string()), Errno::ENODATA);
        }
        assert_eq!(absences.0.len(), MAX_ABSENCES);
    }
}
