//! A tree of files that are easily read wrong, by a seed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::chance::Chance;

/// Files in the folder of small ones.
const SMALL: u64 = 500;

/// Bytes of the sparse file, of its data, and of what data and holes are multiples of.
const SPARSE: u64 = 8 << 20;
const BLOCK: u64 = 4096;

/// A tree. Its paths are from its root on.
pub struct Planted {
    /// Where it is.
    pub root: PathBuf,
    /// All of it.
    pub all: Vec<PathBuf>,
    /// Folders, the root among them.
    pub folders: Vec<PathBuf>,
    /// Regular files. Small ones are a half, so that chance meets the others.
    pub files: Vec<PathBuf>,
    /// Regular files of several pages.
    pub large: Vec<PathBuf>,
}

/// Plants a tree in the empty folder `root`.
///
/// # Panics
/// Where it cannot be written.
pub fn plant(root: &Path, chance: &mut Chance) -> Planted {
    let sizes = [0, 1, 4095, 65_535, 65_536, 65_537, 3_000_000];
    let mut files: Vec<PathBuf> = Vec::new();
    let mut write = |path: PathBuf, bytes: &[u8]| {
        fs::write(root.join(&path), bytes).expect("it can be written");
        files.push(path);
    };
    for size in sizes {
        write(format!("{size}-bytes").into(), &noise(chance, size));
    }
    for name in [&b"\xff\xfe"[..], b"new\nline", b"a \"b\"\\", b"-rf", &[b'x'; 255]] {
        write(OsStr::from_bytes(name).into(), name);
    }
    for folder in ["many", "deep/er", "empty"] {
        fs::create_dir_all(root.join(folder)).expect("a new folder");
    }
    write("deep/er/file".into(), &noise(chance, 20_000));

    let sparse = File::create(root.join("sparse")).expect("a new file");
    sparse.set_len(SPARSE + 77).expect("it is a file");
    for _ in 0..12 {
        let (at, length) = (BLOCK * chance.below(SPARSE / BLOCK), BLOCK * (1 + chance.below(9)));
        let length = length.min(SPARSE - at);
        sparse.write_all_at(&noise(chance, length), at).expect("it can be written");
    }
    files.push("sparse".into());
    for (one, other) in [("4095-bytes", "linked"), ("65537-bytes", "deep/linked")] {
        fs::hard_link(root.join(one), root.join(other)).expect("links are to be had");
        files.push(other.into());
    }
    let long = "x/".repeat(2000) + "y";
    let links =
        [("link", "4095-bytes"), ("deep/up", "../many"), ("dangling", "no"), ("long", &long)];
    for (name, target) in links {
        symlink(target, root.join(name)).expect("links are to be had");
    }
    for (file, name, value) in [
        ("0-bytes", "user.one", noise(chance, 10)),
        ("4095-bytes", "user.large", noise(chance, 3000)),
        ("65536-bytes", "user.empty", Vec::new()),
        ("65536-bytes", "user.one", noise(chance, 100)),
        ("many", "user.one", noise(chance, 10)),
    ] {
        xattr::set(root.join(file), name, &value).expect("attributes are kept");
    }
    let others = files.len();
    for number in 0..SMALL {
        let path = PathBuf::from(format!("many/file-{number}"));
        let size = chance.below(3000);
        fs::write(root.join(&path), noise(chance, size)).expect("it can be written");
        if number % 7 == 0 {
            xattr::set(root.join(&path), "user.one", &number.to_le_bytes()).expect("it is kept");
        }
        files.push(path);
    }
    let large = ["65535-bytes", "65537-bytes", "3000000-bytes", "sparse", "deep/linked"];
    let folders = ["", "many", "deep", "deep/er", "empty"].map(PathBuf::from).to_vec();
    let links = links.map(|(name, _)| PathBuf::from(name));
    let all = [&files[..], &folders, &links].concat();
    for (path, number) in files.iter().zip(0..) {
        let permissions = fs::Permissions::from_mode([0o644, 0o400, 0o755, 0o4751][number % 4]);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(chance.below(2_000_000_000));
        let file = File::open(root.join(path)).expect("it was written");
        file.set_modified(time).expect("it is ours");
        fs::set_permissions(root.join(path), permissions).expect("it is ours");
    }
    // So that those that are alone of their kind are met as often as all small ones together.
    let odd = files[..others].to_vec();
    let files =
        (0..usize::try_from(SMALL).expect("it is small") / others).flat_map(|_| odd.clone());
    let files = files.chain(all.iter().filter(|path| path.starts_with("many/")).cloned()).collect();
    Planted { root: root.to_owned(), all, folders, files, large: large.map(PathBuf::from).to_vec() }
}

/// Bytes that tell where they are of what.
fn noise(chance: &mut Chance, length: u64) -> Vec<u8> {
    let mut own = Chance::seeded(chance.below(u64::MAX));
    let words = (0..length.div_ceil(8)).map(|_| own.below(u64::MAX).to_le_bytes());
    let mut bytes: Vec<u8> = words.flatten().collect();
    bytes.truncate(usize::try_from(length).expect("it fits memory"));
    bytes
}
