//! Requests that bring something about many files of one directory at once.

use guestmnt_protocol::batch::{self, Numbered, Outcome, Plain, Planned, Stored, Wanted};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::message::{Answer, Request};
use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::xattr::{self, FileXattrs, Xattr};
use nix::errno::Errno;

use super::Guest;
use super::error::errno_of;

/// What the guest gives of a small file.
#[derive(Debug, PartialEq, Eq)]
pub enum Contents<'a> {
    /// Its first bytes, at most as many as were wanted.
    Bytes(&'a [u8]),
    /// Where they are: as many as were wanted, on a disk that need not be there.
    Stored(Stored),
}

impl Guest {
    /// Reads the first bytes of several files of `folder`, or asks where they are, and hands what
    /// there is of each file, or its error, to `take`, in the order asked for. Fewer bytes than were
    /// wanted come only at a file's end.
    ///
    /// # Errors
    /// The guest's error, or `EIO`; `take` was not called then. `EINVAL` for more than fits into a
    /// payload.
    pub fn read_files(
        &self,
        folder: GuestPath,
        plain: Plain,
        files: Vec<Wanted>,
        mut take: impl FnMut(usize, Result<Contents<'_>, Errno>),
    ) -> Result<(), Errno> {
        let sizes: Vec<u32> = files.iter().map(|wanted| wanted.size).collect();
        let mut planned = Planned::default();
        if !sizes.iter().all(|&size| planned.add(size)) {
            return Err(Errno::EINVAL);
        }
        let request = Request::ReadFiles { folder, plain, files };
        self.call(&request, planned.most(), |answer, payload| {
            let mut rest = payload;
            // All of them are checked before any is handed on.
            let outcomes: Vec<Outcome> = sizes
                .iter()
                .map(|&size| {
                    let outcome = batch::pop_outcome(&mut rest).ok()?;
                    let good = match outcome {
                        Outcome::Here(length) => length <= size,
                        Outcome::Stored(stored) => plain == Plain::Places && stored.length == size,
                        Outcome::Failed(_) => true,
                    };
                    good.then_some(outcome)
                })
                .collect::<Option<_>>()?;
            let length = |outcome: &Outcome| match outcome {
                Outcome::Here(length) => *length as usize,
                Outcome::Stored(_) | Outcome::Failed(_) => 0,
            };
            if answer != Answer::Payload || outcomes.iter().map(length).sum::<usize>() != rest.len()
            {
                return None;
            }
            for (index, outcome) in outcomes.iter().enumerate() {
                let (bytes, behind) = rest.split_at(length(outcome));
                rest = behind;
                take(
                    index,
                    match outcome {
                        Outcome::Here(_) => Ok(Contents::Bytes(bytes)),
                        Outcome::Stored(stored) => Ok(Contents::Stored(*stored)),
                        Outcome::Failed(errno) => Err(errno_of(*errno)),
                    },
                );
            }
            Some(())
        })
    }

    /// What extended attributes these files of `folder` have: of as many, from the first on,
    /// as the guest sent, and of one at least.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn read_xattrs(
        &self,
        folder: GuestPath,
        files: Vec<Numbered>,
    ) -> Result<Vec<Result<Vec<Xattr>, Errno>>, Errno> {
        let most = files.len();
        let request = Request::ReadXattrs { folder, files };
        self.call(&request, MAX_PAYLOAD, |answer, mut page| {
            let mut files = Vec::new();
            while !page.is_empty() {
                let file: FileXattrs = xattr::pop_file(&mut page).ok()?;
                files.push(file.map_err(errno_of));
            }
            let good = answer == Answer::Payload && (1..=most).contains(&files.len());
            good.then_some(files)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    use guestmnt_protocol::VERSION;
    use guestmnt_protocol::frame::{self, HEADER_LEN, Header, Place};
    use guestmnt_protocol::message::Outcome as Said;
    use guestmnt_protocol::path::EntryName;

    use super::*;

    /// A guest that answers the first request with `payload`, whatever it is.
    fn guest_that_says(payload: &[u8]) -> Guest {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let payload = payload.to_vec();
        thread::spawn(move || {
            let hello: Said = Ok(Answer::Hello { version: VERSION, slots: Vec::new() });
            for (outcome, payload) in [(hello, Vec::new()), (Ok(Answer::Payload), payload)] {
                let mut header = [0; HEADER_LEN];
                guest.read_exact(&mut header).unwrap();
                let header = Header::decode(&header).unwrap();
                guest.read_exact(&mut vec![0; header.body_len]).unwrap();
                let mut answer = Vec::new();
                frame::encode(&mut answer, header.seq, &outcome, payload.len(), Place::Port)
                    .unwrap();
                guest.write_all(&[answer, payload].concat()).unwrap();
            }
        });
        let second = Duration::from_secs(1);
        Guest::connect(vec![host], None, second, second).unwrap()
    }

    fn numbered(text: &str) -> Numbered {
        Numbered { name: EntryName::new(text.as_bytes()).unwrap(), number: 0 }
    }

    /// What comes of `payload` when two files of 3 bytes are asked for.
    fn files(plain: Plain, payload: &[u8]) -> Result<Vec<Result<Vec<u8>, Errno>>, Errno> {
        let wanted = ["1", "2"].map(|text| Wanted { file: numbered(text), size: 3 });
        let mut taken = Vec::new();
        let folder = GuestPath::root();
        guest_that_says(payload).read_files(folder, plain, wanted.into(), |index, contents| {
            assert_eq!(index, taken.len());
            taken.push(contents.map(|contents| match contents {
                Contents::Bytes(bytes) => bytes.to_vec(),
                Contents::Stored(stored) => stored.place.to_string().into_bytes(),
            }));
        })?;
        Ok(taken)
    }

    #[test]
    fn each_file_has_its_own_bytes() {
        let both = files(Plain::Bytes, b"\x00\x03\x00\x02onetw");
        assert_eq!(both, Ok(vec![Ok(b"one".to_vec()), Ok(b"tw".to_vec())]));
        let second = files(Plain::Bytes, b"\x02\x05\x00\x03two");
        assert_eq!(second, Ok(vec![Err(Errno::EIO), Ok(b"two".to_vec())]));
        let stored = files(Plain::Places, b"\x01\x00\x07\x03\x00\x03two");
        assert_eq!(stored, Ok(vec![Ok(b"7".to_vec()), Ok(b"two".to_vec())]));
    }

    #[test]
    fn files_that_are_not_as_was_asked_are_refused_all_together() {
        let table: [(&str, &[u8]); 9] = [
            ("nothing", b""),
            ("one file only", b"\x00\x03one"),
            ("more than was wanted", b"\x00\x04\x00\x00onee"),
            ("4 GiB", b"\x00\xff\xff\xff\xff\x0f\x00\x00"),
            ("bytes of no file", b"\x00\x03\x00\x03onetwo!"),
            ("fewer than there should be", b"\x00\x03\x00\x03onetw"),
            ("an unknown outcome", b"\x03\x03\x00\x03onetwo"),
            ("a place of other bytes", b"\x01\x00\x07\x02\x00\x03two"),
            ("half an outcome", b"\x01\x00\x07"),
        ];
        for (what, payload) in table {
            assert_eq!(files(Plain::Places, payload), Err(Errno::EIO), "{what}");
        }
        let unwanted = files(Plain::Bytes, b"\x01\x00\x07\x03\x00\x03two");
        assert_eq!(unwanted, Err(Errno::EIO), "places that nobody asked for");
    }

    #[test]
    fn attributes_of_files_that_nobody_asked_for_are_refused() {
        let ask = |page: &[u8]| {
            guest_that_says(page).read_xattrs(GuestPath::root(), ["a", "b"].map(numbered).into())
        };
        assert_eq!(ask(b"\x00\x00").unwrap(), [Ok(Vec::new())]);
        assert_eq!(ask(b"\x00\x00\x01\x5f").unwrap(), [Ok(Vec::new()), Err(Errno::EOPNOTSUPP)]);
        for page in [&b""[..], b"\x00\x00\x00\x00\x00\x00", b"\x00", b"\x02", b"\x00\xff\xff\x03"] {
            assert_eq!(ask(page).unwrap_err(), Errno::EIO, "{page:?}");
        }
    }
}
