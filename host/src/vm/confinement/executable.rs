//! What kind of file a program is: an ELF file, which needs its dynamic loader, or a script, which
//! needs an interpreter and whatever it calls.
//!
//! Source: elf(5), 64-bit little-endian, as all hosts of ours are.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Longest first line of a script, and path of a loader.
const MAX_LINE: usize = 256;

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Its path without symbolic links.
    pub path: PathBuf,
    /// The files that the kernel executes to run it, itself among them, without symbolic links.
    pub executed: Vec<PathBuf>,
    /// Whether it is a script.
    pub is_script: bool,
}

impl Executable {
    /// The program at `path`.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn of(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let file = File::open(&path)?;
        let interpreter = script_interpreter(&file)?;
        let is_script = interpreter.is_some();
        let loader = match &interpreter {
            Some(interpreter) => elf_loader(&File::open(interpreter)?)?,
            None => elf_loader(&file)?,
        };
        let others = interpreter.into_iter().chain(loader);
        let others = others.map(fs::canonicalize).collect::<io::Result<Vec<_>>>()?;
        let executed = std::iter::once(path.clone()).chain(others).collect();
        Ok(Self { path, executed, is_script })
    }
}

/// The program in a script's first line.
fn script_interpreter(file: &File) -> io::Result<Option<PathBuf>> {
    let mut line = [0; MAX_LINE];
    let read = file.read_at(&mut line, 0)?;
    let Some(rest) = line[..read].strip_prefix(b"#!") else { return Ok(None) };
    let first = rest.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii();
    let name = first.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    Ok(Some(PathBuf::from(OsStr::from_bytes(name))))
}

/// The path in an ELF file's `PT_INTERP`; `None` where it is linked statically.
fn elf_loader(file: &File) -> io::Result<Option<PathBuf>> {
    const PT_INTERP: u32 = 3;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a program of this machine"));
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let (table, size) = (number(&header[32..40]), number(&header[54..56]));
    for n in 0..number(&header[56..58]) {
        let mut entry = [0; 56];
        let at = table.checked_add(n * size).ok_or(io::ErrorKind::InvalidData)?;
        file.read_exact_at(&mut entry, at)?;
        if number(&entry[..4]) != u64::from(PT_INTERP) {
            continue;
        }
        let mut path = [0; MAX_LINE];
        let read = file.read_at(&mut path, number(&entry[8..16]))?;
        let end = path[..read].iter().position(|&byte| byte == 0);
        let end = end.ok_or(io::ErrorKind::InvalidData)?;
        return Ok(Some(PathBuf::from(OsStr::from_bytes(&path[..end]))));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_loader_and_a_script_with_its_shell() {
        let shell = Executable::of(Path::new("/bin/sh")).unwrap();
        assert!(!shell.is_script);
        assert!(shell.executed.len() == 2, "{shell:?}");
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        fs::write(&script, "#! /bin/sh -e\nexit 0\n").unwrap();
        let script = Executable::of(&script).unwrap();
        assert!(script.is_script);
        assert_eq!(script.executed[1..], shell.executed);
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [b"".as_slice(), &[0; 100], b"\x7fELF\x02\x01 and no more"] {
            fs::write(file.path(), bytes).unwrap();
            assert!(Executable::of(file.path()).is_err(), "{bytes:?}");
        }
    }
}
