//! Images out of an archive: where the table's names of them lead once they are unpacked.
//!
//! A name is the path below the archive's top directory. What is compressed there is decompressed
//! beside itself; of an archive within the archive, `!` and the member's path follow; a metadata
//! dump of Btrfs is restored. A row's SHA-256 is that of the file in the archive.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::source::{Archive, Source};
use crate::error::Error;
use crate::process::{Tool, search_path};

/// Endings of compressed files, and the programs that write them decompressed to stdout with `-dc`.
const COMPRESSED: [(&str, &str); 3] = [(".xz", "xz"), (".gz", "gzip"), (".bz2", "bzip2")];

/// The first bytes of a metadata dump, after its own position of 8 bytes.
/// Source: `HEADER_MAGIC` in btrfs-progs' image/metadump.h.
const METADATA_DUMP: [u8; 8] = 0xbd5c_25e2_7295_668b_u64.to_le_bytes();

/// Unpacks the directories of images of `source` into the new directory `to`.
///
/// # Errors
/// [`Error::Program`] with tar's own words.
pub fn unpack(source: &Source, archive: &Archive, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(Error::file("create", to))?;
    Tool::new("tar")
        .arg("-xf")
        .arg(&archive.file)
        .args(["--no-same-owner", "--strip-components=1", "--wildcards", "-C"])
        .arg(to)
        .args(source.directories.iter().map(|directory| format!("*/{directory}/*")))
        .run()?;
    make_readable(to)
}

/// The names of all images in the unpacked directories of `source`, sorted.
///
/// # Errors
/// Where an archive in them cannot be unpacked.
pub fn images(source: &Source, root: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for directory in source.directories {
        for file in files_below(&root.join(directory))? {
            let name = below(root, &file);
            if !source.endings.iter().any(|ending| name.ends_with(ending)) {
                continue;
            }
            if !name.contains(".tar.") {
                names.push(name);
                continue;
            }
            let members = unpack_members(&file)?;
            let listed = files_below(&members)?;
            names.extend(listed.iter().map(|member| format!("{name}!{}", below(&members, member))));
        }
    }
    names.retain(|name| !source.others.iter().any(|other| name.contains(other)));
    names.sort();
    Ok(names)
}

fn below(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).expect("it was found below").to_string_lossy().into_owned()
}

/// Regular files below a directory.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut ahead = vec![directory.to_owned()];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(&directory).map_err(Error::file("list", &directory))? {
            let path = entry.map_err(Error::file("list", &directory))?.path();
            let meta = fs::symlink_metadata(&path).map_err(Error::file("look at", &path))?;
            if meta.is_dir() {
                ahead.push(path);
            } else if meta.is_file() {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Unpacks the archive `stored`, which lies within the archive, beside itself.
fn unpack_members(stored: &Path) -> Result<PathBuf, Error> {
    let directory = appended(stored, ".d");
    if !directory.exists() {
        fs::create_dir(&directory).map_err(Error::file("create", &directory))?;
        let tar = Tool::new("tar").arg("-xf").arg(stored).arg("--no-same-owner");
        tar.arg("-C").arg(&directory).run()?;
        make_readable(&directory)?;
    }
    Ok(directory)
}

/// An image's name in the table, `FILE` or `FILE!MEMBER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageName<'a> {
    file: &'a str,
    member: Option<&'a str>,
}

impl<'a> ImageName<'a> {
    /// Reads the name.
    #[must_use]
    pub fn parse(name: &'a str) -> Self {
        match name.split_once('!') {
            Some((file, member)) => Self { file, member: Some(member) },
            None => Self { file: name, member: None },
        }
    }

    /// The file as it is in the archive, below the directory that this was unpacked in.
    #[must_use]
    pub fn stored(self, root: &Path) -> PathBuf {
        root.join(self.file)
    }

    /// Decompresses the image where it has to be, and returns it.
    ///
    /// # Errors
    /// Where the file does not exist, or cannot be decompressed.
    pub fn prepare(self, root: &Path) -> Result<PathBuf, Error> {
        let stored = self.stored(root);
        if let Some(member) = self.member {
            return Ok(unpack_members(&stored)?.join(member));
        }
        let compressed = COMPRESSED
            .iter()
            .find_map(|(ending, program)| Some((self.file.strip_suffix(ending)?, *program)));
        let image = match compressed {
            Some((name, program)) => {
                let image = root.join(name);
                if !image.exists() {
                    decompress(program, &stored, &image)?;
                }
                image
            }
            None => stored,
        };
        if !is_metadata_dump(&image).map_err(Error::file("read", &image))? {
            return Ok(image);
        }
        let restored = appended(&image, ".restored");
        if !restored.exists() {
            Tool::new("btrfs-image").arg("-r").arg(&image).arg(&restored).run()?;
        }
        Ok(restored)
    }
}

fn appended(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Lets the ordinary user read what root has unpacked.
fn make_readable(directory: &Path) -> Result<(), Error> {
    Tool::new("chmod").args(["-R", "a+rX"]).arg(directory).run()
}

fn is_metadata_dump(image: &Path) -> io::Result<bool> {
    let mut head = [0; 8];
    match File::open(image)?.read_exact(&mut head) {
        Ok(()) => Ok(head == METADATA_DUMP),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Decompresses `from` into the new file `to`, with holes where it has zeros.
fn decompress(program: &str, from: &Path, to: &Path) -> Result<(), Error> {
    let start = |source| Error::Start { program: program.to_owned(), source };
    let mut child = Command::new(program)
        .arg("-dc")
        .arg(from)
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let mut output = child.stdout.take().expect("piped above");
    let written = write_sparse(&mut output, to);
    let status = child.wait().map_err(start)?;
    written.map_err(Error::file("write", to))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::unfit(
        format!("{program} cannot decompress {}: {status}", from.display()),
        "remove target/corpora and try again",
    ))
}

fn write_sparse(from: &mut impl Read, to: &Path) -> io::Result<()> {
    let mut file = File::create_new(to)?;
    let mut block = vec![0; 64 << 10];
    let mut length = 0;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match from.read(&mut block[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return file.set_len(length);
        }
        if block[..filled].iter().any(|&byte| byte != 0) {
            file.seek(SeekFrom::Start(length))?;
            file.write_all(&block[..filled])?;
        }
        length += filled as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_image_of_each_kind_of_name() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::write(at("plain"), "plain").unwrap();
        fs::write(at("small.img"), "compressed").unwrap();
        Tool::new("gzip").arg(at("small.img")).run().unwrap();
        fs::write(at("member"), "member").unwrap();
        let tar = Tool::new("tar").arg("-cJf").arg(at("many.tar.xz")).arg("-C").arg(root.path());
        tar.arg("member").run().unwrap();

        for (name, stored, contents) in [
            ("plain", "plain", "plain"),
            ("small.img.gz", "small.img.gz", "compressed"),
            ("many.tar.xz!member", "many.tar.xz", "member"),
        ] {
            let name = ImageName::parse(name);
            assert_eq!(name.stored(root.path()), at(stored));
            let image = name.prepare(root.path()).unwrap();
            assert_eq!(fs::read_to_string(&image).unwrap(), contents);
            assert_eq!(name.prepare(root.path()).unwrap(), image);
        }
        assert!(ImageName::parse("none.xz").prepare(root.path()).is_err());
    }

    #[test]
    fn zeros_become_a_hole_of_the_right_length() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("image");
        let bytes = [vec![1; 10], vec![0; 200_000]].concat();
        write_sparse(&mut bytes.as_slice(), &to).unwrap();
        assert_eq!(fs::read(to).unwrap(), bytes);
    }
}
