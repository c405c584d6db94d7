//! Requests on files against a folder of this machine, over a socket pair.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use crate::client::{Client, path};
use guestmnt_appliance::guest::Guest;
use guestmnt_protocol::attr::{Attr, Time};
use guestmnt_protocol::limits::{MAX_NAME, MAX_PAYLOAD};
use guestmnt_protocol::message::{Answer, Extent, Request};
use guestmnt_protocol::path::{EntryName, GuestPath};
use nix::sys::stat::Mode;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn read(at: &str) -> Request {
    Request::Read { path: path(at), offset: 0, size: 10 }
}

fn read_dir(at: &str) -> Request {
    Request::ReadDir { path: path(at), from: 0, size: 4096 }
}

#[test]
fn stat_says_what_the_filesystem_says() {
    let root = folder();
    fs::write(root.path().join("file"), b"18 bytes of text..").unwrap();
    fs::set_permissions(root.path().join("file"), Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(root.path().join("file"), root.path().join("link")).unwrap();
    let expected = fs::metadata(root.path().join("file")).unwrap();
    let mut client = Client::over(root.path());

    let attr = client.stat("/file");

    assert_eq!((attr.ino, attr.volume, attr.nlink), (expected.ino(), 0, 2));
    assert_eq!(attr.mode, expected.mode());
    assert_eq!((attr.uid, attr.gid), (expected.uid(), expected.gid()));
    assert_eq!((attr.size, attr.blocks), (18, expected.blocks()));
    assert_eq!(u64::from(attr.block_size), expected.blksize());
    assert_eq!(attr.modified.secs, expected.mtime());
    assert_eq!(i64::from(attr.modified.nanos), expected.mtime_nsec());
    assert_eq!(client.stat("/link").ino, attr.ino);
    assert_eq!(client.stat("/").mode & libc::S_IFMT, libc::S_IFDIR);
}

#[test]
fn missing_files_and_files_as_folders_have_their_own_errors() {
    let root = folder();
    fs::write(root.path().join("file"), b"").unwrap();
    let mut client = Client::over(root.path());
    let table = [
        (Request::Stat(path("/none")), libc::ENOENT),
        (Request::Stat(path("/none/below")), libc::ENOENT),
        (Request::Stat(path("/file/below")), libc::ENOTDIR),
        (read("/none"), libc::ENOENT),
        (read("/"), libc::EISDIR),
        (read_dir("/file"), libc::ENOTDIR),
        (read_dir("/none"), libc::ENOENT),
        (Request::ReadLink(path("/file")), libc::EINVAL),
        (Request::ReadLink(path("/")), libc::EINVAL),
    ];
    for (request, errno) in table {
        assert_eq!(client.errno(&request), errno, "{request:?}");
    }
}

#[test]
fn a_symbolic_link_is_shown_and_never_followed() {
    let outside = folder();
    fs::write(outside.path().join("secret"), b"secret").unwrap();
    let root = folder();
    fs::create_dir(root.path().join("inside")).unwrap();
    fs::write(root.path().join("inside/file"), b"inside").unwrap();
    symlink(outside.path(), root.path().join("absolute")).unwrap();
    symlink("../../../../../..", root.path().join("climbing")).unwrap();
    symlink("inside", root.path().join("harmless")).unwrap();
    symlink("inside/file", root.path().join("to-file")).unwrap();
    symlink("loop", root.path().join("loop")).unwrap();
    let mut client = Client::over(root.path());

    assert_eq!(client.stat("/harmless").mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(client.bytes(&Request::ReadLink(path("/climbing"))), b"../../../../../..");
    for middle in ["/absolute/secret", "/climbing/etc", "/harmless/file", "/loop/file"] {
        assert_eq!(client.errno(&Request::Stat(path(middle))), libc::ELOOP, "{middle}");
        assert_eq!(client.errno(&read(middle)), libc::ELOOP, "{middle}");
        assert_eq!(client.errno(&read_dir(middle)), libc::ELOOP, "{middle}");
        assert_eq!(client.errno(&Request::ReadLink(path(middle))), libc::ELOOP, "{middle}");
        assert_eq!(client.errno(&Request::ListXattr(path(middle))), libc::ELOOP, "{middle}");
        assert_eq!(client.errno(&Request::StatFs(path(middle))), libc::ELOOP, "{middle}");
    }
    assert_eq!(client.errno(&read("/to-file")), libc::ELOOP);
    assert_eq!(client.errno(&read("/loop")), libc::ELOOP);
    // O_DIRECTORY with O_NOFOLLOW on a link is ENOTDIR on some kernels.
    assert!([libc::ELOOP, libc::ENOTDIR].contains(&client.errno(&read_dir("/harmless"))));
}

#[test]
fn names_are_bytes() {
    let root = folder();
    let names: [&[u8]; 7] = [
        b"\xff\xfe",
        b"new\nline",
        b"...",
        b" ",
        b"\x1b[31m",
        "gr\u{fc}n".as_bytes(),
        &[b'x'; 255],
    ];
    for name in names {
        fs::write(root.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let mut client = Client::over(root.path());

    let mut listed: Vec<_> =
        client.list("/", 4096).into_iter().map(|entry| entry.name.as_bytes().to_vec()).collect();
    listed.sort();
    let mut expected = names.map(<[u8]>::to_vec).to_vec();
    expected.sort();
    assert_eq!(listed, expected);
    for name in names {
        let at = GuestPath::new(name.to_vec()).unwrap();
        assert_eq!(client.bytes(&Request::Read { path: at, offset: 0, size: 1000 }), name);
    }
}

#[test]
fn a_name_longer_than_the_filesystem_allows_is_refused() {
    let root = folder();
    let mut client = Client::over(root.path());
    let at = GuestPath::new(vec![b'x'; MAX_NAME]).unwrap();
    assert_eq!(client.errno(&Request::Stat(at)), libc::ENAMETOOLONG);
}

#[test]
fn a_path_beyond_path_max_is_walked_to_its_end() {
    let root = folder();
    let name = EntryName::new(&[b'd'; 200]).unwrap();
    let mut at = GuestPath::root();
    let mut folder =
        nix::dir::Dir::open(root.path(), nix::fcntl::OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..60 {
        let child = OsStr::from_bytes(name.as_bytes());
        nix::sys::stat::mkdirat(&folder, child, Mode::S_IRWXU).unwrap();
        folder =
            nix::dir::Dir::openat(&folder, child, nix::fcntl::OFlag::O_DIRECTORY, Mode::empty())
                .unwrap();
        at = at.join(&name).unwrap();
    }
    let flags = nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_WRONLY;
    let file = nix::fcntl::openat(&folder, "file", flags, Mode::S_IRWXU).unwrap();
    nix::unistd::write(&file, b"deep").unwrap();
    let mut client = Client::over(root.path());
    assert!(at.as_bytes().len() > 2 * 4096);

    let listed = client.bytes(&Request::ReadDir { path: at.clone(), from: 0, size: 4096 });
    assert!(!listed.is_empty());
    let file = at.join(&EntryName::new(b"file").unwrap()).unwrap();
    assert_eq!(client.bytes(&Request::Read { path: file, offset: 0, size: 10 }), b"deep");
}

#[test]
fn reads_end_with_the_file() {
    let root = folder();
    let content: Vec<u8> = (0..100_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    fs::write(root.path().join("file"), &content).unwrap();
    fs::write(root.path().join("empty"), b"").unwrap();
    let mut client = Client::over(root.path());

    assert_eq!(client.read("/file", 0, u32::try_from(MAX_PAYLOAD).unwrap()), content);
    assert_eq!(client.read("/file", 99_990, 100), content[99_990..]);
    assert_eq!(client.read("/file", 500, 0), b"");
    for beyond in [100_000, 100_001, i64::MAX.cast_unsigned()] {
        assert_eq!(client.read("/file", beyond, 100), b"", "{beyond}");
    }
    assert_eq!(client.read("/empty", 0, 100), b"");
    let too_far = Request::Read { path: path("/file"), offset: 1 << 63, size: 1 };
    assert_eq!(client.errno(&too_far), libc::EINVAL);
    let size = u32::try_from(MAX_PAYLOAD + 1).unwrap();
    let too_much = Request::Read { path: path("/file"), offset: 0, size };
    assert_eq!(client.errno(&too_much), libc::EINVAL);
}

#[test]
fn holes_keep_their_place() {
    let root = folder();
    let mut file = File::create(root.path().join("sparse")).unwrap();
    file.seek(SeekFrom::Start(1 << 20)).unwrap();
    file.write_all(b"data").unwrap();
    file.set_len(1 << 43).unwrap();
    let mut client = Client::over(root.path());
    let mut seek =
        |offset, what| client.ask(&Request::Seek { path: path("/sparse"), offset, what }).0;

    assert_eq!(seek(0, Extent::Data), Ok(Answer::Offset(1 << 20)));
    assert_eq!(seek(0, Extent::Hole), Ok(Answer::Offset(0)));
    let Ok(Answer::Offset(hole)) = seek(1 << 20, Extent::Hole) else { panic!("no hole") };
    assert!((1 << 20 | 4..=1 << 21).contains(&hole), "{hole}");
    assert_eq!(seek(hole, Extent::Data).unwrap_err().errno, libc::ENXIO.try_into().unwrap());
    assert_eq!(seek(1 << 43, Extent::Hole).unwrap_err().errno, libc::ENXIO.try_into().unwrap());
    assert_eq!(client.stat("/sparse").size, 1 << 43);
    assert_eq!(client.read("/sparse", (1 << 20) - 2, 6), b"\0\0data");
    assert_eq!(client.read("/sparse", (1 << 43) - 3, 6), b"\0\0\0");
}

#[test]
fn nothing_but_regular_files_is_opened() {
    let root = folder();
    nix::unistd::mkfifo(&root.path().join("fifo"), Mode::S_IRWXU).unwrap();
    let _listener = UnixListener::bind(root.path().join("socket")).unwrap();
    let mut client = Client::over(root.path());
    let mut special = vec!["/fifo", "/socket"];
    // Device nodes take root.
    let device = root.path().join("device");
    let null = nix::sys::stat::makedev(1, 3);
    match nix::sys::stat::mknod(&device, nix::sys::stat::SFlag::S_IFCHR, Mode::S_IRWXU, null) {
        Ok(()) => special.push("/device"),
        Err(errno) => println!("SKIP: no device node can be made here: {errno}"),
    }
    for at in special {
        assert_eq!(client.errno(&read(at)), libc::EINVAL, "{at}");
        assert_eq!(client.errno(&read_dir(at)), libc::ENOTDIR, "{at}");
        assert_eq!(client.stat(at).size, 0, "{at}");
        let seek = Request::Seek { path: path(at), offset: 0, what: Extent::Data };
        assert_eq!(client.errno(&seek), libc::EINVAL, "{at}");
    }
}

#[test]
fn a_large_directory_comes_in_pages() {
    let root = folder();
    for n in 0..5000 {
        File::create(root.path().join(format!("file-{n:04}"))).unwrap();
    }
    let mut client = Client::over(root.path());

    for size in [4096, 100_000, 1 << 20] {
        let mut names: Vec<_> =
            client.list("/", size).into_iter().map(|entry| entry.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 5000, "pages of {size}");
    }
}

#[test]
fn entries_carry_the_attributes_of_their_files() {
    let root = folder();
    fs::write(root.path().join("file"), b"four").unwrap();
    symlink("file", root.path().join("link")).unwrap();
    fs::create_dir(root.path().join("folder")).unwrap();
    let mut client = Client::over(root.path());

    let entries = client.list("/", 4096);

    assert_eq!(entries.len(), 3);
    for entry in entries {
        let at = String::from_utf8(entry.name.as_bytes().to_vec()).unwrap();
        // Reading the link's target for the page was an access.
        let accessed = |attr: Attr| Attr { accessed: Time::default(), ..attr };
        assert_eq!(entry.attr.map(accessed), Some(accessed(client.stat(&at))), "{at}");
    }
}

#[test]
fn reading_goes_on_behind_any_entry() {
    let root = folder();
    for n in 0..300 {
        File::create(root.path().join(format!("{n}"))).unwrap();
    }
    let mut client = Client::over(root.path());
    let all = client.list("/", 4096);

    for n in [0, 1, 150, 298] {
        let page = client.page("/", all[n].next, 1 << 20);
        assert_eq!(page, all[n + 1..], "behind entry {n}");
    }
    assert!(client.page("/", all[299].next, 4096).is_empty());
}

#[test]
fn a_page_too_small_for_one_entry_is_refused() {
    let root = folder();
    File::create(root.path().join("file")).unwrap();
    let mut client = Client::over(root.path());
    let request = Request::ReadDir { path: path("/"), from: 0, size: 10 };
    assert_eq!(client.errno(&request), libc::EINVAL);
    assert_eq!(client.page("/", 0, 4096).len(), 1);
}

#[test]
fn lanes_in_the_same_directory_do_not_disturb_each_other() {
    let root = folder();
    for n in 0..2000 {
        File::create(root.path().join(format!("{n}"))).unwrap();
    }
    let guest = Arc::new(Guest::over(root.path()).unwrap());
    let expected = Client::of(Arc::clone(&guest)).list("/", 1 << 20);

    let lanes = [4096, 5000, 6000, 7000].map(|size| {
        let mut client = Client::of(Arc::clone(&guest));
        std::thread::spawn(move || client.list("/", size))
    });
    for lane in lanes {
        assert_eq!(lane.join().unwrap(), expected);
    }
}

#[test]
fn more_files_than_are_kept_open_can_be_read_in_turn() {
    let root = folder();
    for n in 0..200 {
        fs::write(root.path().join(format!("{n}")), format!("file {n}")).unwrap();
    }
    let mut client = Client::over(root.path());
    for n in (0..200).chain(0..200) {
        assert_eq!(client.read(&n.to_string(), 0, 100), format!("file {n}").as_bytes());
    }
}

#[test]
fn xattrs_are_listed_and_read() {
    let root = folder();
    let file = root.path().join("file");
    fs::write(&file, b"").unwrap();
    let value = vec![7; 3000];
    if let Err(error) =
        set_xattr(&file, "user.long", &value).and_then(|()| set_xattr(&file, "user.empty", b""))
    {
        println!("SKIP: the folder for temporary files has no xattrs: {error}");
        return;
    }
    symlink("file", root.path().join("link")).unwrap();
    let mut client = Client::over(root.path());
    let get = |at: &str, name: &[u8]| Request::GetXattr { path: path(at), name: name.to_vec() };

    let names = client.bytes(&Request::ListXattr(path("/file")));
    let mut names: Vec<&[u8]> = names.split_inclusive(|&b| b == 0).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"user.empty\0"[..], b"user.long\0"]);
    assert_eq!(client.bytes(&get("/file", b"user.long")), value);
    assert_eq!(client.bytes(&get("/file", b"user.empty")), b"");
    assert_eq!(client.errno(&get("/file", b"user.none")), libc::ENODATA);
    assert_eq!(client.errno(&get("/file", b"user.n\0ne")), libc::EINVAL);
    assert_eq!(client.errno(&get("/none", b"user.long")), libc::ENOENT);
    // The link itself, which has none.
    assert_eq!(client.bytes(&Request::ListXattr(path("/link"))), b"");
}

fn set_xattr(file: &std::path::Path, name: &str, value: &[u8]) -> nix::Result<()> {
    let file = CString::new(file.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    // SAFETY: two strings that end in NUL, and a value with its own length.
    let done = unsafe {
        libc::setxattr(file.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    nix::errno::Errno::result(done).map(drop)
}

#[test]
fn statfs_counts_in_its_block_size() {
    let root = folder();
    let expected = nix::sys::statvfs::statvfs(root.path()).unwrap();
    let mut client = Client::over(root.path());
    let (outcome, _) = client.ask(&Request::StatFs(path("/")));
    let Ok(Answer::StatFs(fs)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(fs.blocks, expected.blocks());
    assert_eq!(u64::from(fs.block_size), expected.fragment_size());
    assert_eq!(u64::from(fs.name_len), expected.name_max());
}

#[test]
fn other_filesystems_below_the_root_have_their_own_volume_number() {
    // `/` with `/proc` in it: two filesystems that every machine has. `/proc/self` is a link.
    let mut client = Client::over("/".as_ref());
    assert_eq!(client.stat("/").volume, 0);
    let proc = client.stat("/proc").volume;
    assert_ne!(proc, 0);
    assert_eq!(client.stat("/proc/1/status").volume, proc);
}
