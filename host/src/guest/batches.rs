//! Requests that bring something about many files of one directory at once.

use guestmnt_protocol::batch::{self, Layout, Wanted};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::message::{Answer, Request};
use guestmnt_protocol::path::{EntryName, GuestPath};
use guestmnt_protocol::xattr::{self, FileXattrs, Xattr};
use nix::errno::Errno;

use super::Guest;
use super::error::errno_of;

impl Guest {
    /// Reads the first bytes of several files of `folder` and hands those of each file, or its
    /// error, to `take` where they lie, in the order asked for. Fewer bytes than were wanted come
    /// only at a file's end.
    ///
    /// # Errors
    /// The guest's error, or `EIO`; `take` was not called then. `EINVAL` for more than fits into a
    /// payload.
    pub fn read_files(
        &self,
        folder: GuestPath,
        files: Vec<Wanted>,
        mut take: impl FnMut(usize, Result<&[u8], Errno>),
    ) -> Result<(), Errno> {
        let sizes: Vec<u32> = files.iter().map(|wanted| wanted.size).collect();
        let layout = Layout::of(&sizes).ok_or(Errno::EINVAL)?;
        let request = Request::ReadFiles { folder, files };
        self.call(&request, layout.len(), |answer, payload| {
            if answer != Answer::Payload || payload.len() != layout.len() {
                return None;
            }
            let rooms = layout.rooms();
            // All of them are checked before any is handed on.
            let outcomes: Vec<_> = (0..rooms.len())
                .map(|index| {
                    let outcome = batch::outcome(payload, index)?;
                    let length = outcome.map(|length| length as usize);
                    let fits = length.is_ok_and(|length| length <= rooms[index].len());
                    (fits || length.is_err()).then_some(length)
                })
                .collect::<Option<_>>()?;
            for (index, outcome) in outcomes.into_iter().enumerate() {
                let bytes = outcome.map(|length| &payload[rooms[index].start..][..length]);
                take(index, bytes.map_err(errno_of));
            }
            Some(())
        })
    }

    /// What extended attributes the files `names` of `folder` have: of as many, from the first on,
    /// as the guest sent, and of one at least.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn read_xattrs(
        &self,
        folder: GuestPath,
        names: Vec<EntryName>,
    ) -> Result<Vec<Result<Vec<Xattr>, Errno>>, Errno> {
        let most = names.len();
        let request = Request::ReadXattrs { folder, names };
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
    use guestmnt_protocol::message::Outcome;

    use super::*;

    /// A guest that answers the first request with `payload`, whatever it is.
    fn guest_that_says(payload: &[u8]) -> Guest {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let payload = payload.to_vec();
        thread::spawn(move || {
            let hello: Outcome = Ok(Answer::Hello { version: VERSION, slots: Vec::new() });
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

    fn name(text: &str) -> EntryName {
        EntryName::new(text.as_bytes()).unwrap()
    }

    /// What comes of a payload of `outcomes`, with as many contents as two files of 3 bytes need.
    fn files(outcomes: &[u8], length: usize) -> Result<Vec<Result<Vec<u8>, Errno>>, Errno> {
        let mut payload = outcomes.to_vec();
        payload.resize(512, 0);
        payload.extend_from_slice(b"one");
        payload.resize(1024, 0);
        payload.extend_from_slice(b"two");
        payload.resize(length, 0);
        let wanted = ["1", "2"].map(|text| Wanted { name: name(text), size: 3 });
        let mut taken = Vec::new();
        guest_that_says(&payload).read_files(
            GuestPath::root(),
            wanted.into(),
            |index, bytes| {
                assert_eq!(index, taken.len());
                taken.push(bytes.map(<[u8]>::to_vec));
            },
        )?;
        Ok(taken)
    }

    #[test]
    fn each_file_has_the_bytes_of_its_own_room() {
        let outcomes = [0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        assert_eq!(files(&outcomes, 1536), Ok(vec![Ok(b"one".to_vec()), Ok(b"tw".to_vec())]));
        let outcomes = [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(files(&outcomes, 1536), Ok(vec![Err(Errno::EIO), Ok(Vec::new())]));
    }

    #[test]
    fn files_that_do_not_fit_their_rooms_are_refused_all_together() {
        let too_long = [0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
        let far_too_long = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
        let both = [5, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for outcomes in [too_long, far_too_long, both] {
            assert_eq!(files(&outcomes, 1536), Err(Errno::EIO), "{outcomes:?}");
        }
        let good = [0; 16];
        for length in [0, 16, 1024, 1535] {
            assert_eq!(files(&good, length), Err(Errno::EIO), "{length}");
        }
    }

    #[test]
    fn attributes_of_files_that_nobody_asked_for_are_refused() {
        let ask = |page: &[u8]| {
            guest_that_says(page).read_xattrs(GuestPath::root(), vec![name("a"), name("b")])
        };
        assert_eq!(ask(b"\x00\x00").unwrap(), [Ok(Vec::new())]);
        assert_eq!(ask(b"\x00\x00\x01\x5f").unwrap(), [Ok(Vec::new()), Err(Errno::EOPNOTSUPP)]);
        for page in [&b""[..], b"\x00\x00\x00\x00\x00\x00", b"\x00", b"\x02", b"\x00\xff\xff\x03"] {
            assert_eq!(ask(page).unwrap_err(), Errno::EIO, "{page:?}");
        }
    }
}
