//! What is told of files of NTFS by their records is what the driver of NTFS says: on a real VM, a
//! mount that lists folders and reads what is in them together, against one that asks for each file
//! by its name.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use guestmnt_tests::chance::Chance;
use guestmnt_tests::program::{Workplace, text};
use sha2::{Digest, Sha256};
use xtask::Error;
use xtask::disks::ntfs::{Edit, Format, Volume};
use xtask::disks::reparse::Link;
use xtask::skips::skip;

/// Makes the files.
const FILES: &str = include_str!("../src/ntfs_files.sh");

const FORMAT: Format<'_> = Format { sectors: 48 << 11, start: 0, label: "records" };

/// Bytes of a file's record.
const RECORD: usize = 1024;

/// A volume with files of every shape. `None`, and a skip, where there can be none.
fn volume(place: &Workplace) -> Option<PathBuf> {
    let link = |at: &str, link, target: &str| Edit::Link {
        at: format!("links/{at}"),
        link,
        target: target.to_owned(),
    };
    let edits = [
        Edit::Script(FILES.to_owned()),
        link("junction", Link::Junction, "\\??\\C:\\names"),
        link("folder", Link::Relative, "..\\names"),
        link("file", Link::Relative, "..\\names\\here"),
    ];
    let image = place.path().join("image");
    let made = Volume::format(image.clone(), &FORMAT).and_then(|volume| volume.edit(&edits));
    match made {
        Ok(()) => Some(image),
        Err(error @ (Error::Unfit { .. } | Error::Start { .. })) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A volume that is mounted, with a note of each request to the guest.
struct Mounted<'a> {
    place: &'a Workplace,
    mountpoint: PathBuf,
    server: Child,
}

impl<'a> Mounted<'a> {
    /// Mounts the volume `image` with the guest's options `options`.
    fn new(place: &'a Workplace, image: &Path, options: &str) -> Self {
        let mountpoint = place.path().join("mnt");
        fs::create_dir_all(&mountpoint).unwrap();
        let device = format!("/dev/sda:/:{options}");
        let mut arguments = vec!["-x", "--fd", "1", "--format", "raw", "-a", text(image)];
        arguments.extend(["-m", &device, "-o", "symlinks=raw", text(&mountpoint)]);
        let log = File::create(place.path().join("log")).unwrap();
        let mut command = place.command("guestmnt", &arguments);
        let mut server = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        server.stdout.take().unwrap().read_exact(&mut [0]).expect("it is mounted");
        Self { place, mountpoint, server }
    }

    /// How many requests of this kind the guest got.
    fn requests(&self, kind: &str) -> usize {
        let log = fs::read(self.place.path().join("log")).unwrap();
        let wanted = format!("guestmnt: -> {kind}");
        String::from_utf8_lossy(&log).lines().filter(|line| *line == wanted).count()
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.place.run("guestunmnt", &[text(&self.mountpoint)]);
        } else {
            self.place.unmount(&self.mountpoint);
        }
        let _ = self.server.wait();
    }
}

/// What a mount says of a file, or the error that it gives.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    attributes: Result<String, i32>,
    /// Of a file, its contents' length and hash; of a link, its target.
    contents: Result<String, i32>,
    xattrs: Result<Vec<(OsString, Vec<u8>)>, i32>,
}

fn attributes(path: &Path) -> Result<String, i32> {
    let stat = fs::symlink_metadata(path).map_err(number)?;
    let (kind, size) = ((stat.ino(), stat.nlink(), stat.uid(), stat.gid()), stat.len());
    let times = [
        (stat.atime(), stat.atime_nsec()),
        (stat.mtime(), stat.mtime_nsec()),
        (stat.ctime(), stat.ctime_nsec()),
    ];
    Ok(format!("{kind:?} {:o} {size} bytes {} blocks {times:?}", stat.mode(), stat.blocks()))
}

fn contents(path: &Path) -> Result<String, i32> {
    let kind = fs::symlink_metadata(path).map_err(number)?.file_type();
    if kind.is_symlink() {
        return fs::read_link(path).map(|target| format!("{target:?}")).map_err(number);
    }
    let bytes = if kind.is_dir() { Vec::new() } else { fs::read(path).map_err(number)? };
    Ok(format!("{} bytes {:x?}", bytes.len(), &Sha256::digest(&bytes)[..8]))
}

fn xattrs(path: &Path) -> Result<Vec<(OsString, Vec<u8>)>, i32> {
    let value = |name: OsString| {
        let value = xattr::get(path, &name).map_err(number);
        value.map(|value| (name, value.unwrap_or_default()))
    };
    let names = xattr::list(path).map_err(number)?;
    let mut all = names.map(value).collect::<Result<Vec<_>, _>>()?;
    all.sort();
    Ok(all)
}

fn number(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

/// What is seen below `root` by who lists each folder first, then looks at the files in their order,
/// reads them, and asks for their attributes.
fn seen_together(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
        let files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        let attributes: Vec<_> = files.iter().map(|file| attributes(file)).collect();
        let contents: Vec<_> = files.iter().map(|file| contents(file)).collect();
        for ((path, attributes), contents) in files.into_iter().zip(attributes).zip(contents) {
            if fs::symlink_metadata(&path).is_ok_and(|stat| stat.is_dir()) {
                folders.push(path.clone());
            }
            let xattrs = xattrs(&path);
            let below = path.strip_prefix(root).unwrap().to_owned();
            seen.insert(below, Seen { attributes, contents, xattrs });
        }
    }
    seen
}

/// What is seen of `files` by who knows their names already, and comes to them in no order.
fn seen_one_by_one<'a>(
    root: &Path,
    files: impl Iterator<Item = &'a PathBuf>,
) -> BTreeMap<PathBuf, Seen> {
    let mut chance = Chance::seeded(1);
    let mut files: Vec<_> = files.map(|file| (chance.below(u64::MAX), file)).collect();
    files.sort();
    let seen = files.into_iter().map(|(_, file)| {
        let path = root.join(file);
        let (attributes, contents) = (attributes(&path), contents(&path));
        (file.clone(), Seen { attributes, contents, xattrs: xattrs(&path) })
    });
    seen.collect()
}

/// Checks that both see the same in the volume `image`, mounted with `options`; returns what.
fn assert_same_both_ways(
    place: &Workplace,
    image: &Path,
    options: &str,
) -> BTreeMap<PathBuf, Seen> {
    let mounted = Mounted::new(place, image, options);
    let together = seen_together(&mounted.mountpoint);
    assert!(mounted.requests("read-files") > 0 && mounted.requests("read-xattrs") > 0);
    let asked = mounted.requests("stat");
    assert!(asked < together.len() / 20, "{asked} of {}", together.len());
    drop(mounted);
    let mounted = Mounted::new(place, image, options);
    let one_by_one = seen_one_by_one(&mounted.mountpoint, together.keys());
    // No record is believed before the driver has agreed on one that was listed. Attributes are
    // asked for by a request for many, of one file each.
    for batch in ["readdir", "read-files"] {
        assert_eq!(mounted.requests(batch), 0, "{batch}");
    }
    assert!(mounted.requests("stat") >= one_by_one.len());
    drop(mounted);
    assert_eq!(together.len(), one_by_one.len());
    let differ = together.iter().filter(|(path, seen)| one_by_one[*path] != **seen);
    let differ: Vec<_> = differ.map(|(path, seen)| (path, seen, &one_by_one[path])).collect();
    assert!(differ.is_empty(), "together, and one by one, {options:?}: {differ:#?}");
    together
}

#[test]
fn files_listed_together_are_as_the_driver_says_one_by_one() {
    let place = Workplace::new();
    let Some(image) = volume(&place) else { return };
    let seen = assert_same_both_ways(&place, &image, "");
    assert!(seen.len() > 1900, "{}", seen.len());
    let has = |path: &str, what: &str| {
        let attributes = seen[Path::new(path)].attributes.as_ref().unwrap();
        assert!(attributes.contains(what), "{path}: {attributes}");
    };
    has("shapes/of 700 bytes", " 700 bytes ");
    has("names/one of many", ", 61, ");
    has("attributes/read-only", " 100555 ");
    has("times/1969", "(-31535999, 123456700)");
    has("times/2107", "(4323283201, 123456700)");
    let twice = seen[Path::new("attributes/extended twice")].xattrs.as_ref().unwrap();
    let value = |name: &str| twice.iter().find(|(found, _)| found == name).map(|(_, value)| value);
    assert_eq!(value("user.one").map(Vec::as_slice), Some(&b"1234"[..]));
    assert_same_both_ways(&place, &image, "umask=077,uid=1000,gid=1001");
    place.assert_clean(&["image", "log", "mnt"]);
}

/// Where the record with this number is in the bytes of a volume.
fn record(volume: &[u8], number: u64) -> usize {
    let is_it = |record: &&[u8]| {
        let own = u32::from_le_bytes(record[0x2c..0x30].try_into().unwrap());
        record.starts_with(b"FILE") && u64::from(own) == number
    };
    let at = volume.chunks_exact(RECORD).position(|record| is_it(&record));
    at.expect("each file has a record") * RECORD
}

/// Where the attribute `nth` of this kind begins in a record.
fn attribute(record: &[u8], kind: u32, nth: usize) -> usize {
    let number = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap());
    let mut at = usize::from(record[0x14]);
    let mut all = std::iter::from_fn(|| {
        let found = at;
        at += usize::try_from(number(at + 4)).unwrap();
        (number(found) != u32::MAX).then_some(found)
    });
    all.by_ref().filter(|&at| number(at) == kind).nth(nth).expect("it has the attribute")
}

#[test]
fn files_with_an_attribute_that_the_driver_refuses_are_as_it_says() {
    let place = Workplace::new();
    let Some(image) = volume(&place) else { return };
    let mounted = Mounted::new(&place, &image, "");
    let number = |path: &str| fs::metadata(mounted.mountpoint.join(path)).unwrap().ino();
    let damaged: [(_, _, _, _, &[u8]); 6] = [
        // The attribute's kind, and which one of these; what is in it where.
        ("attributes/identified 2", 0x40, 0, 0x10, &[0xff]),
        ("shapes/of 70000 bytes", 0x80, 0, 0x22, &[4]),
        ("attributes/streams", 0x80, 0, 0x0a, &[0xff]),
        ("shapes/of 4095 bytes", 0x80, 0, 0x09, &[0xff]),
        // A second name of 0x42 bytes, without a letter.
        ("names/here", 0x30, 1, 0x10, &[0x42]),
        ("names/Another long name.text", 0x30, 1, 0x10, &[0x42]),
    ];
    let damaged = damaged.map(|(path, kind, nth, at, bytes)| (number(path), kind, nth, at, bytes));
    let odd = number("many/file 719");
    drop(mounted);
    let mut bytes = fs::read(&image).unwrap();
    for (number, kind, nth, at, new) in damaged {
        let record = record(&bytes, number);
        let found = record + attribute(&bytes[record..record + RECORD], kind, nth);
        bytes[found + at..found + at + new.len()].copy_from_slice(new);
        if kind == 0x30 {
            // Of the name's value only the length of the name is left.
            bytes[found + 0x18 + 0x40] = 0;
        }
    }
    // What belongs at the sectors' ends, at an odd place.
    let odd = record(&bytes, odd);
    bytes.copy_within(odd + 0x30..odd + 0x36, odd + 0x31);
    bytes[odd + 4] = 0x31;
    bytes.copy_within(odd + 0x31..odd + 0x33, odd + 510);
    bytes.copy_within(odd + 0x31..odd + 0x33, odd + 1022);
    fs::write(&image, bytes).unwrap();

    let seen = assert_same_both_ways(&place, &image, "");

    let failed = seen.values().filter(|seen| seen.attributes.is_err()).count();
    assert!(failed >= 5, "{failed} files cannot be looked at");
    place.assert_clean(&["image", "log", "mnt"]);
}

#[test]
fn files_with_a_damaged_record_are_as_the_driver_says() {
    let place = Workplace::new();
    let Some(image) = volume(&place) else { return };
    let mounted = Mounted::new(&place, &image, "");
    let number = |path: &str| fs::metadata(mounted.mountpoint.join(path)).unwrap().ino();
    let damaged = [
        // The byte of the record, and what it is there. Not how often it was used (0x10): the driver
        // compares that with what the folder's index says, which a listing does not tell.
        ("many/file 700", 0, "the signature"),
        ("many/file 701", 510, "the sign at a sector's end"),
        ("many/file 704", 0x16, "that it is in use"),
        ("many/file 706", 0x18, "the bytes that are used"),
        ("many/file 707", 0x12, "the number of links"),
        ("many/file 709", 0x14, "the first attribute"),
        ("many/file 710", 0x20, "the record that it belongs to"),
        ("many/file 712", 0x38, "the first attribute's kind"),
        ("many/file 713", 0x3c, "its length"),
        ("shapes/of 4097 bytes", 0x06, "the number of signs"),
        ("shapes/of 4096 bytes", 0x1c, "the bytes of the record"),
    ]
    .map(|(path, byte, what)| (path, number(path), byte, what));
    drop(mounted);
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let bytes = fs::read(&image).unwrap();
    for (_, number, byte, _) in damaged {
        let at = record(&bytes, number) + byte;
        file.write_all_at(&[bytes[at] ^ 0x5], at as u64).unwrap();
    }

    let seen = assert_same_both_ways(&place, &image, "");

    let failed = seen.values().filter(|seen| seen.attributes.is_err()).count();
    assert!((3..=damaged.len()).contains(&failed), "{failed} files cannot be looked at");
    place.assert_clean(&["image", "log", "mnt"]);
}
