//! Damaged images: each is a small one of a filesystem, a volume or a partition table, with a few
//! sectors changed as failing hardware or a hostile author would. Which ones follows from a seed
//! and the mutant's number.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::disks::assembled::{self, PASSPHRASE};
use crate::disks::filesystems::Kind;
use crate::disks::noise::Noise;
use crate::disks::specimens::{Specimen, Specimens};
use crate::disks::{partitions, sparse};
use crate::error::Error;

const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

/// An image that mutants are made of.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What it is an image of.
    pub name: String,
    /// The image, which stays as it is.
    pub image: PathBuf,
    /// What is mounted of it.
    pub device: &'static str,
    /// What its encrypted volume opens with.
    pub passphrase: Option<&'static str>,
    tables: Tables,
}

/// Where an image has what its mutants are changed in most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tables {
    /// Where it looks like tables and not like contents of files, which are noise here.
    Anywhere,
    /// In its first and last MiB.
    AtEnds,
}

/// Those that there are: filesystems, volumes, and partition tables, which are made in `scratch`.
///
/// # Errors
/// [`Error`] where one cannot be made.
pub fn subjects(specimens: &Specimens, scratch: &Path) -> Result<Vec<Subject>, Error> {
    let subject = |name: &str, image: PathBuf, device, passphrase, tables| Subject {
        name: name.to_owned(),
        image,
        device,
        passphrase,
        tables,
    };
    let mut subjects = Vec::new();
    for kind in Kind::ALL {
        // What could not be made here is missing in the table, too.
        if let Specimen::Image { path, .. } = specimens.of(kind)? {
            subjects.push(subject(kind.file_name(), path, "/dev/sda", None, Tables::Anywhere));
        }
    }
    let volumes = [
        ("raid-lvm.img", "lvm on raid", "/dev/array/root", None),
        ("luks1.img", "luks", "/dev/mapper/cryptsda", Some(PASSPHRASE)),
    ];
    for (image, name, device, passphrase) in volumes {
        if let Ok(path) = assembled::image(specimens, image) {
            subjects.push(subject(name, path, device, passphrase, Tables::AtEnds));
        }
    }
    let Specimen::Image { path: small, .. } = specimens.of(Kind::Vfat)? else {
        return Ok(subjects);
    };
    let (mbr, gpt) = (scratch.join("mbr.img"), scratch.join("gpt.img"));
    partitions::mbr_with_logical(&mbr, &[&small, &small])?;
    partitions::gpt(&gpt, &[&small, &small])?;
    subjects.push(subject("mbr", mbr, "/dev/sda5", None, Tables::AtEnds));
    subjects.push(subject("gpt", gpt, "/dev/sda2", None, Tables::AtEnds));
    Ok(subjects)
}

/// The sectors of an image that are worth a change.
#[derive(Clone, Debug)]
pub struct Anatomy {
    /// Tables, as far as can be told.
    tables: Vec<u64>,
    /// All that hold something.
    used: Vec<u64>,
}

impl Anatomy {
    /// That of `subject`.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn of(subject: &Subject) -> Result<Self, Error> {
        let read = || -> io::Result<Self> {
            const NEAR: u64 = 2048;
            let file = File::open(&subject.image)?;
            let count = file.metadata()?.len() / SECTOR as u64;
            let mut anatomy = Self { tables: Vec::new(), used: Vec::new() };
            let mut piece = vec![0; 1 << 20];
            for (start, end) in sparse::data_ranges(&file)? {
                let mut at = start;
                while at < end {
                    let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(piece.len());
                    file.read_exact_at(&mut piece[..length], at)?;
                    for (number, sector) in
                        (at / SECTOR as u64..).zip(piece[..length].chunks_exact(SECTOR))
                    {
                        let at_ends = number < NEAR || number + NEAR >= count;
                        let look = Look::of(sector);
                        let table = match subject.tables {
                            Tables::Anywhere => look == Look::Table,
                            Tables::AtEnds => at_ends && look != Look::Empty,
                        };
                        anatomy.tables.extend(table.then_some(number));
                        anatomy.used.extend((look != Look::Empty).then_some(number));
                    }
                    at += length as u64;
                }
            }
            Ok(anatomy)
        };
        read().map_err(Error::file("read", &subject.image))
    }

    fn pick(&self, noise: &mut Noise) -> u64 {
        let elsewhere = noise.below(8) == 0 || self.tables.is_empty();
        let among = if elsewhere { &self.used } else { &self.tables };
        among[noise.below(among.len())]
    }
}

/// What a sector looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Empty,
    Table,
    Contents,
}

impl Look {
    /// Tables have many zeros; contents of the specimens' files, which are noise, have hardly any.
    fn of(sector: &[u8]) -> Self {
        if sector.iter().all(|&byte| byte == 0) {
            return Self::Empty;
        }
        let zeros = sector.iter().filter(|&&byte| byte == 0).count();
        if zeros >= SECTOR / 16 { Self::Table } else { Self::Contents }
    }
}

/// The sectors of an image that are not what they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant(BTreeMap<u64, Sector>);

impl Mutant {
    /// Number `number` of those of `subject` that `seed` stands for.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn of(subject: &Subject, anatomy: &Anatomy, seed: u64, number: u64) -> Result<Self, Error> {
        let mut noise = Noise::of(&format!("{seed}/{}/{number}", subject.name));
        let count = if noise.below(8) == 0 { 64 } else { 1 + noise.below(6) };
        let mut make = || -> io::Result<Self> {
            let file = File::open(&subject.image)?;
            let mut changed = BTreeMap::new();
            // Not all changes are ones: what becomes zero may have been.
            while changed.is_empty() {
                for _ in 0..count {
                    change(&file, anatomy, &mut noise, &mut changed)?;
                }
                let mut differing = BTreeMap::new();
                for (number, sector) in changed {
                    if read(&file, number)? != sector {
                        differing.insert(number, sector);
                    }
                }
                changed = differing;
            }
            Ok(Self(changed))
        };
        make().map_err(Error::file("read", &subject.image))
    }

    /// Changes `copy`, a copy of the subject's image.
    ///
    /// # Errors
    /// As pwrite(2).
    pub fn inflict(&self, copy: &File) -> io::Result<()> {
        self.0
            .iter()
            .try_for_each(|(number, sector)| copy.write_all_at(sector, number * SECTOR as u64))
    }

    /// Makes `copy` again what `original` is.
    ///
    /// # Errors
    /// As pread(2) and pwrite(2).
    pub fn heal(&self, original: &File, copy: &File) -> io::Result<()> {
        self.0.keys().try_for_each(|&number| {
            copy.write_all_at(&read(original, number)?, number * SECTOR as u64)
        })
    }
}

fn read(file: &File, number: u64) -> io::Result<Sector> {
    let mut sector = [0; SECTOR];
    file.read_exact_at(&mut sector, number * SECTOR as u64)?;
    Ok(sector)
}

/// Makes one change.
fn change(
    file: &File,
    anatomy: &Anatomy,
    noise: &mut Noise,
    changed: &mut BTreeMap<u64, Sector>,
) -> io::Result<()> {
    let (one, other) = (anatomy.pick(noise), anatomy.pick(noise));
    let now = |number: u64| changed.get(&number).copied().map_or_else(|| read(file, number), Ok);
    let (mut sector, another) = (now(one)?, now(other)?);
    match noise.below(8) {
        0 | 1 => {
            for _ in 0..=noise.below(8) {
                sector[noise.below(SECTOR)] ^= 1 << noise.below(8);
            }
        }
        2 | 3 => {
            const STRIKING: [u32; 6] = [0, 1, 2, 1 << 31, i32::MAX as u32, u32::MAX];
            let value = STRIKING[noise.below(STRIKING.len())];
            let at = 4 * noise.below(SECTOR / 4);
            sector[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        4 => sector.fill(0),
        // A write that was torn: the rest is what was there before, or something else's.
        5 => sector[SECTOR / 2..].copy_from_slice(&another[SECTOR / 2..]),
        6 => {
            changed.insert(other, sector);
            sector = another;
        }
        _ => noise.fill(&mut sector),
    }
    changed.insert(one, sector);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(folder: &Path) -> Subject {
        let image = folder.join("image");
        let file = sparse::create(&image, 16 << 20).unwrap();
        let mut contents = vec![0; 1 << 20];
        Noise::of("contents").fill(&mut contents);
        file.write_all_at(&contents, 8 << 20).unwrap();
        file.write_all_at(&[7; 300], 4096).unwrap();
        let (device, tables) = ("/dev/sda", Tables::Anywhere);
        Subject { name: "test".to_owned(), image, device, passphrase: None, tables }
    }

    #[test]
    fn tables_are_told_from_contents_and_from_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let anatomy = Anatomy::of(&subject(folder.path())).unwrap();
        assert_eq!((anatomy.tables, anatomy.used.len()), (vec![8], 2049));
    }

    #[test]
    fn a_mutant_follows_from_its_number_and_can_be_undone() {
        let folder = tempfile::tempdir().unwrap();
        let subject = subject(folder.path());
        let anatomy = Anatomy::of(&subject).unwrap();
        let mutant = |seed, number| Mutant::of(&subject, &anatomy, seed, number).unwrap();
        assert_eq!(mutant(1, 5), mutant(1, 5));
        assert!(mutant(1, 5) != mutant(1, 6) && mutant(1, 5) != mutant(2, 5));

        let copied = folder.path().join("copy");
        std::fs::copy(&subject.image, &copied).unwrap();
        let copy = File::options().read(true).write(true).open(&copied).unwrap();
        let digest = |path| crate::digest::of_file(path).unwrap();
        let before = digest(&subject.image);
        for number in 0..20 {
            mutant(1, number).inflict(&copy).unwrap();
            assert_ne!(digest(&copied), before, "{number}");
            mutant(1, number).heal(&File::open(&subject.image).unwrap(), &copy).unwrap();
            assert_eq!(digest(&copied), before, "{number}");
        }
    }
}
