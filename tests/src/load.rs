//! Work on files that goes on until something dies under it, and what must be there afterwards.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};

use crate::chance::Chance;

/// Files of each worker.
const FILES: usize = 6;

/// Bytes of the longest file, and of the longest write.
const LONGEST: u64 = 400_000;
const WRITE: u64 = 100_000;

/// What was brought to the disk when a worker met its end.
pub struct Synced {
    folder: PathBuf,
    /// By file, what it held when that was last said to be on the disk.
    files: Vec<Vec<u8>>,
    /// What it was about to become, where that is one thing: the file and all of it.
    next: Option<(usize, Option<Vec<u8>>)>,
    /// That a file which was being replaced may be neither the old one nor the new one.
    may_be_half: bool,
    /// How often something was brought to the disk.
    pub times: u64,
}

impl Synced {
    /// Makes the files of a worker in a new folder, on the disk.
    ///
    /// # Panics
    /// Where that fails.
    #[must_use]
    pub fn make(folder: &Path) -> Self {
        let files = vec![Vec::new(); FILES];
        let folder = folder.to_owned();
        let new = Self { folder, files, next: None, may_be_half: false, times: 0 };
        new.make_files().expect("nothing has died yet");
        new
    }

    /// The same on a filesystem without a journal, where nothing is changed at once.
    ///
    /// # Panics
    /// As [`Synced::make`].
    #[must_use]
    pub fn make_without_journal(folder: &Path) -> Self {
        Self { may_be_half: true, ..Self::make(folder) }
    }

    fn make_files(&self) -> io::Result<()> {
        fs::create_dir(&self.folder)?;
        for file in 0..FILES {
            File::create_new(self.path(file))?.sync_all()?;
        }
        File::open(&self.folder)?.sync_all()?;
        File::open(self.folder.parent().expect("it is in a mount"))?.sync_all()
    }

    fn path(&self, file: usize) -> PathBuf {
        self.folder.join(file.to_string())
    }

    /// Checks that each file is as it was when it was brought to the disk; the one that was being
    /// changed may have changed.
    ///
    /// # Panics
    /// Where one is not.
    pub fn assert_there(&self) {
        let half = self.next.as_ref().filter(|_| self.may_be_half).map(|(file, _)| *file);
        for (file, synced) in self.files.iter().enumerate().filter(|(file, _)| Some(*file) != half)
        {
            let path = self.path(file);
            let found = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let whole = match &self.next {
                Some((changing, None)) if *changing == file => true,
                Some((changing, Some(next))) if *changing == file => found == *next,
                _ => false,
            };
            let (length, was) = (found.len(), synced.len());
            let about = path.display();
            assert!(whole || found == *synced, "{about}: {length} bytes instead of {was}");
        }
    }

    /// Replaces whole files by new ones until something fails: each is written, brought to the disk
    /// and renamed over the old one, as an editor does.
    pub fn replace_until_the_end(&mut self, chance: &mut Chance) {
        let new = self.folder.join("new");
        loop {
            let (file, bytes) = (index(chance), bytes(chance, LONGEST));
            self.next = Some((file, Some(bytes.clone())));
            let replace = || -> io::Result<()> {
                let mut opened = File::create(&new)?;
                opened.write_all(&bytes)?;
                opened.sync_all()?;
                fs::rename(&new, self.path(file))?;
                File::open(&self.folder)?.sync_all()
            };
            if replace().is_err() {
                return;
            }
            self.is_synced(file, bytes);
        }
    }

    /// Changes files where they are until something fails: some writes, truncations and holes, then
    /// what came of them is brought to the disk.
    pub fn change_until_the_end(&mut self, chance: &mut Chance) {
        loop {
            let file = index(chance);
            self.next = Some((file, None));
            let mut model = self.files[file].clone();
            let mut change = || -> io::Result<()> {
                let opened = File::options().read(true).write(true).open(self.path(file))?;
                for _ in 0..=chance.below(4) {
                    change(&opened, &mut model, chance)?;
                }
                if chance.below(4) == 0 { opened.sync_data() } else { opened.sync_all() }
            };
            if change().is_err() {
                return;
            }
            self.is_synced(file, model);
        }
    }

    fn is_synced(&mut self, file: usize, bytes: Vec<u8>) {
        self.files[file] = bytes;
        self.times += 1;
    }
}

/// Makes one change, to the file and to what it should be then.
fn change(file: &File, model: &mut Vec<u8>, chance: &mut Chance) -> io::Result<()> {
    let place = chance.below(LONGEST - WRITE);
    let from = usize::try_from(place).expect("files are short");
    match chance.below(8) {
        0 => {
            model.resize(from, 0);
            file.set_len(place)
        }
        1 => {
            let length = 1 + chance.below(WRITE);
            let upto = model.len().min(from + usize::try_from(length).expect("files are short"));
            if from < upto {
                model[from..upto].fill(0);
            }
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            Ok(fallocate(file, punch, place.cast_signed(), length.cast_signed())?)
        }
        _ => {
            let bytes = bytes(chance, WRITE);
            let upto = from + bytes.len();
            model.resize(model.len().max(upto), 0);
            model[from..upto].copy_from_slice(&bytes);
            file.write_all_at(&bytes, place)
        }
    }
}

fn index(chance: &mut Chance) -> usize {
    usize::try_from(chance.below(FILES as u64)).expect("it is below a length")
}

/// Some bytes that tell when they were written.
fn bytes(chance: &mut Chance, most: u64) -> Vec<u8> {
    let (length, first) = (1 + chance.below(most), chance.below(251));
    (0..length)
        .map(|at| u8::try_from((first + at / 7 + at * at % 31) % 251).expect("a remainder of 251"))
        .collect()
}
