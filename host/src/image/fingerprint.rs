//! What tells a disk's files from others, and from themselves at another time: an overlay is of
//! use only over exactly what it was made over.
//!
//! All of an image cannot be read for that. What is looked at: lengths, content ids, the first
//! and last bytes of each file, and, apart from these, when each was changed last.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use sha2::{Digest, Sha256};

use super::Disk;

/// Bytes at each end of a file that are looked at.
const SAMPLE: u64 = 64 << 10;

/// Bytes of a digest.
pub const DIGEST: usize = 32;

/// A disk's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of what the files hold, as far as they are looked at.
    pub contents: [u8; DIGEST],
    /// Of the times when they were changed last.
    pub times: [u8; DIGEST],
}

impl Disk {
    /// What tells this disk from others.
    ///
    /// # Errors
    /// Where one of its files cannot be read.
    pub fn fingerprint(&self) -> io::Result<Fingerprint> {
        let (mut contents, mut times) = (Sha256::new(), Sha256::new());
        contents.update(self.size.to_le_bytes());
        for link in &self.chain {
            contents.update([b'L']);
            contents.update(link.size.to_le_bytes());
            contents.update(link.qemu_driver());
            if let Some(vmdk) = link.vmdk {
                contents.update(format!("{:?}", vmdk.cid));
            }
            for file in link.files() {
                add(file, &mut contents, &mut times)?;
            }
        }
        Ok(Fingerprint { contents: contents.finalize().into(), times: times.finalize().into() })
    }
}

fn add(file: &File, contents: &mut Sha256, times: &mut Sha256) -> io::Result<()> {
    let stat = file.metadata()?;
    contents.update(stat.len().to_le_bytes());
    // What has no name was made in memory just now, from what the other files say.
    if stat.nlink() == 0 {
        return Ok(());
    }
    let sample = stat.len().min(SAMPLE);
    let mut bytes = vec![0; usize::try_from(sample).expect("it is small")];
    for start in [0, stat.len() - sample] {
        file.read_exact_at(&mut bytes, start)?;
        contents.update(&bytes);
    }
    times.update(stat.mtime().to_le_bytes());
    times.update(stat.mtime_nsec().to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use super::super::{Format, OpenOptions};
    use super::*;

    fn fingerprint(path: &Path) -> Fingerprint {
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        Disk::open(path, &options).unwrap().fingerprint().unwrap()
    }

    #[test]
    fn a_copy_has_the_same_contents_at_another_time_and_a_change_shows() {
        let folder = tempfile::tempdir().unwrap();
        let (image, copy) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&image, vec![7; 300_000]).unwrap();
        let before = fingerprint(&image);
        fs::copy(&image, &copy).unwrap();
        let file = File::options().write(true).open(&copy).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
        let copied = fingerprint(&copy);
        assert_eq!((before.contents, before.times == copied.times), (copied.contents, false));
        for at in [0, 299_999] {
            file.write_all_at(b"x", at).unwrap();
            assert_ne!(fingerprint(&copy).contents, copied.contents);
            file.write_all_at(&[7], at).unwrap();
        }
        file.set_len(300_512).unwrap();
        assert_ne!(fingerprint(&copy).contents, copied.contents);
        assert_eq!(fingerprint(&image), before);
    }
}
