//! What QEMU sees as its root: its own program, the libraries of the system, its firmware. All of
//! that is public, read-only, and the same on every machine; nothing of the user's is there.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::executable::Executable;
use crate::sys::confined::{MOST_SHOWN, Shown};

/// Where libraries are, and what finds them.
const LIBRARIES: [&str; 9] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
];

/// Where QEMU's firmware is. Debian's is of links into the second.
const FIRMWARE: [&str; 4] =
    ["/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-kvm", "/usr/local/share/qemu"];

/// What a script may want.
const PROGRAMS: [&str; 3] = ["/bin", "/usr/bin", "/usr/local/bin"];

/// What is done with a piece of the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Read.
    Read,
    /// Read and executed.
    Execute,
    /// A device, read and written.
    Device,
}

/// A file or folder of the host that is part of the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its path on both sides.
    pub path: PathBuf,
    /// What for.
    pub purpose: Use,
}

/// The pieces that `executable` needs, as far as the host has them.
pub fn pieces(executable: &Executable, kvm: bool) -> Vec<Piece> {
    let piece = |purpose| move |path: PathBuf| Piece { path, purpose };
    let named = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    let programs = if executable.is_script { named(&PROGRAMS) } else { Vec::new() };
    // QEMU tries on /dev/null which kind of file locks there is.
    let devices = if kvm { named(&["/dev/null", "/dev/kvm"]) } else { named(&["/dev/null"]) };
    let own = executable.path.parent().and_then(Path::parent).map(own_folders);
    let read =
        named(&LIBRARIES).into_iter().chain(named(&FIRMWARE)).chain(own.into_iter().flatten());
    let executed = executable.executed.iter().cloned().chain(programs);
    let mut pieces: Vec<Piece> = read
        .map(piece(Use::Read))
        .chain(executed.map(piece(Use::Execute)))
        .chain(devices.into_iter().map(piece(Use::Device)))
        .filter(|piece| piece.path.exists())
        .collect();
    pieces.sort_by_key(|piece| piece.path.components().count());
    pieces
}

/// The folders of a QEMU that was installed in a place of its own.
fn own_folders(prefix: &Path) -> Vec<PathBuf> {
    if [Path::new("/usr"), Path::new("/")].contains(&prefix) {
        return Vec::new();
    }
    ["lib", "lib64", "share/qemu"].iter().map(|name| prefix.join(name)).collect()
}

/// How the root is put together of `pieces`, which stand in the order of their depth.
///
/// # Errors
/// Where a piece has gone, or there are too many.
pub fn plan(pieces: &[Piece]) -> io::Result<Vec<Shown>> {
    let mut plan = Vec::new();
    let mut folders: Vec<&Path> = vec![Path::new("/")];
    let mut covered: Vec<&Path> = Vec::new();
    for Piece { path, purpose } in pieces {
        if covered.iter().any(|tree| path.starts_with(tree)) {
            continue;
        }
        let parents: Vec<&Path> = path.ancestors().skip(1).collect();
        for parent in parents.into_iter().rev() {
            if !folders.contains(&parent) {
                plan.push(Shown::Folder(c_string(parent)?));
                folders.push(parent);
            }
        }
        let stat = fs::symlink_metadata(path)?;
        plan.push(if stat.is_symlink() {
            Shown::Link(c_string(path)?, c_string(&fs::read_link(path)?)?)
        } else {
            let devices = *purpose == Use::Device;
            Shown::Tree { path: c_string(path)?, is_folder: stat.is_dir(), devices }
        });
        covered.push(path);
    }
    if plan.len() > MOST_SHOWN {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    }
    Ok(plan)
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them_and_nothing_twice() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("lib/deep")).unwrap();
        fs::write(base.join("program"), "").unwrap();
        std::os::unix::fs::symlink("lib", base.join("lib64")).unwrap();
        let piece = |name: &str| Piece { path: base.join(name), purpose: Use::Read };
        let pieces = ["lib", "lib64", "program", "lib/deep"].map(piece);

        let plan = plan(&pieces).unwrap();

        let name = |name: &str| c_string(&base.join(name)).unwrap();
        let tree =
            |path: &str, is_folder| Shown::Tree { path: name(path), is_folder, devices: false };
        let parents = base.ancestors().count() - 1;
        assert!(plan[..parents].iter().all(|shown| matches!(shown, Shown::Folder(_))), "{plan:?}");
        let expected =
            [tree("lib", true), Shown::Link(name("lib64"), c"lib".into()), tree("program", false)];
        assert_eq!(plan[parents..], expected);
    }
}
