//! Bytes as a tar stream that is unpacked into an image. What a file holds comes in order, within
//! its size, and is no more than the stream has; what is no file holds nothing.

use guestmnt::insert::tar_reader::{Entry, Kind, TarReader};
use guestmnt_protocol::path::GuestPath;

use crate::sealed::seal;

/// Reads them as they are, and with the sums of headers put right.
///
/// # Panics
/// Where what was read is not as promised.
pub fn run(bytes: &[u8]) {
    read(bytes);
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    read(&sealed);
}

/// Reads every second file to its end, so that the others are passed over.
fn read(bytes: &[u8]) {
    let mut reader = TarReader::new(bytes);
    let mut left = bytes.len();
    for number in 0.. {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        };
        let told = entry.path.len() + entry.link.len();
        let xattrs = entry.xattrs.iter().map(|(name, value)| name.len() + value.len());
        assert!(told + xattrs.sum::<usize>() <= bytes.len(), "{entry:?}");
        if let Ok(path) = GuestPath::parse(&entry.path) {
            assert!(!path.as_bytes().split(|&byte| byte == b'/').any(|name| name == b".."));
        }
        match entry.kind {
            Kind::File if number % 2 == 0 => match contents(&mut reader, &entry) {
                Some(read) => left = left.checked_sub(read).expect("no byte comes twice"),
                None => return,
            },
            Kind::File | Kind::Other => {}
            Kind::HardLink
            | Kind::Symlink
            | Kind::Character
            | Kind::Block
            | Kind::Folder
            | Kind::Fifo => assert_eq!(contents(&mut reader, &entry), Some(0), "{entry:?}"),
        }
    }
}

/// How many bytes an entry has; `None` where the stream ends before.
fn contents(reader: &mut TarReader<&[u8]>, entry: &Entry) -> Option<usize> {
    let mut buffer = [0; 1000];
    let (mut end, mut sum) = (0, 0);
    while let Some((offset, count)) = reader.read(&mut buffer).ok()? {
        assert!(offset >= end && (1..=buffer.len()).contains(&count), "{offset} {count}");
        end = offset + count as u64;
        assert!(end <= entry.size, "{entry:?}");
        sum += count;
    }
    Some(sum)
}
