//! Disks of several files: what extents and parents may be, and what is said of the others.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::fixtures::*;
use super::*;

/// What went wrong in the file at fault, by name; for an extent or parent, with it.
fn fault(result: Result<Disk, ImageError>) -> String {
    format!("{:?}", result.unwrap_err().problem())
}

#[test]
fn extents_of_every_type_make_one_disk() {
    let folder = Folder::new();
    folder.write("flat", [0; 8 * 512]);
    folder.write("sparse 1", sparse(2048, None));
    folder.write("cowd", cowd(64));
    folder.write("se", sesparse(640));
    let lines = "RW 3 FLAT \"flat\" 5\nRW 2048 SPARSE \"sparse 1\"\nRDONLY 100 ZERO\n\
                 RW 64 VMFSSPARSE \"cowd\"\nRW 640 SESPARSE \"se\"\nRW 5 VMFS \"flat\"";
    folder.write("a.vmdk", base(7, lines));

    let disk = folder.open("a.vmdk").unwrap();

    let sectors = [3, 2048, 100, 64, 640, 5];
    assert_eq!(disk.size, sectors.iter().sum::<u64>() * 512);
    assert_eq!(disk.warnings, Vec::<String>::new());
    let link = &disk.chain[0];
    let info =
        VmdkInfo { create_type: CreateType::TwoGbMaxExtentFlat, cid: Cid(7), parent_cid: None };
    assert_eq!((link.vmdk, link.format), (Some(info), Format::Vmdk));
    let Source::Described { extents, .. } = &link.source else { panic!("text") };
    let lengths: Vec<u64> = extents.iter().map(|f| f.metadata().unwrap().len()).collect();
    assert_eq!(lengths, [4096, 8192, 51200, 4096, 4096, 4096]);
}

#[test]
fn extents_outside_of_the_folder_need_permission() {
    let folder = Folder::new();
    let (outside, other) = (Folder::new(), Folder::new());
    let secret = outside.write("secret", [0; 512]);
    outside.write("s001.vmdk", sparse(1, None));
    folder.write("vm/.hidden/key", [0; 512]);
    folder.write("beside", [0; 512]);
    fs::hard_link(folder.write("orig", [0; 512]), folder.path.join("vm/hard")).unwrap();
    symlink(&secret, folder.path.join("vm/link")).unwrap();
    symlink(&outside.path, folder.path.join("vm/dir")).unwrap();
    let absolute = format!("RW 1 FLAT \"{}\" 0", secret.display());
    let sparse_absolute = format!("RW 1 SPARSE \"{}/s001.vmdk\"", outside.path.display());
    let table = [
        (absolute.as_str(), "OutsideFolder", &outside.path),
        (&sparse_absolute, "OutsideFolder", &outside.path),
        ("RW 1 FLAT \"../beside\" 0", "OutsideFolder", &folder.path),
        ("RW 1 FLAT \".hidden/key\" 0", "OutsideFolder", &folder.path),
        ("RW 1 FLAT \"link\" 0", "OutsideFolder", &outside.path),
        ("RW 1 FLAT \"dir/secret\" 0", "OutsideFolder", &outside.path),
        ("RW 1 FLAT \"hard\" 0", "HardLinked", &folder.path),
    ];
    for (line, problem, allow) in table {
        folder.write("vm/a.vmdk", base(1, line));
        assert!(fault(folder.open("vm/a.vmdk")).contains(problem), "{line}");
        assert!(folder.open_allowing("vm/a.vmdk", allow).is_ok(), "{line}");
        let elsewhere = fault(folder.open_allowing("vm/a.vmdk", other.path.as_path()));
        assert!(elsewhere.contains(problem), "{line}");
    }
}

#[test]
fn extents_may_be_below_the_folder() {
    let folder = Folder::new();
    folder.write("disks/sub/flat", [0; 512]);
    symlink("disks", folder.path.join("link")).unwrap();
    for name in ["disks/sub/flat", "link/sub/flat", "./disks/../disks/sub/flat"] {
        folder.write("a.vmdk", base(1, &format!("RW 1 FLAT \"{name}\" 0")));
        assert_eq!(folder.open("a.vmdk").unwrap().size, 512, "{name}");
    }
}

#[test]
fn a_descriptor_behind_a_link_has_its_extents_beside_itself() {
    let folder = Folder::new();
    folder.write("real/flat", [0; 512]);
    folder.write("real/a.vmdk", base(1, "RW 1 FLAT \"flat\" 0"));
    symlink("real/a.vmdk", folder.path.join("b.vmdk")).unwrap();
    assert_eq!(folder.open("b.vmdk").unwrap().size, 512);
}

#[test]
fn extents_that_are_no_fitting_files_are_refused() {
    let folder = Folder::new();
    folder.write("flat", [0; 1024]);
    folder.write("sparse", sparse(128, None));
    folder.write("stream", with_footer(sparse(128, None)));
    mkfifo(&folder.path.join("fifo"), Mode::S_IRWXU).unwrap();
    let far = u64::MAX / 512;
    let table = [
        ("RW 1 FLAT \"missing\" 0".to_owned(), "NotFound"),
        ("RW 1 FLAT \"fifo\" 0".to_owned(), "NotRegular(\"a FIFO\")"),
        ("RW 1 FLAT \"/dev/zero\" 0".to_owned(), "NotRegular(\"a device\")"),
        ("RW 1 FLAT \".\" 0".to_owned(), "NotRegular(\"a folder\")"),
        ("RW 1 FLAT \"a.vmdk\" 0".to_owned(), "Overlap"),
        ("RW 1 FLAT \"flat\" 2".to_owned(), "Truncated"),
        (format!("RW 1 FLAT \"flat\" {far}"), "Truncated"),
        (format!("RW 1 FLAT \"flat\" {}", far + 1), "Truncated"),
        (format!("RW 1 FLAT \"flat\" {}", u64::MAX), "Truncated"),
        ("RW 2 FLAT \"flat\" 0\nRW 1 FLAT \"flat\" 1".to_owned(), "Overlap"),
        ("RW 1 FLAT \"flat\" 1\nRW 2 FLAT \"flat\" 0".to_owned(), "Overlap"),
        ("RW 1 FLAT \"flat\" 0\nRW 1 FLAT \"./flat\" 0".to_owned(), "Overlap"),
        ("RW 128 SPARSE \"sparse\"\nRW 128 SPARSE \"sparse\"".to_owned(), "Overlap"),
        ("RW 128 SPARSE \"sparse\"\nRW 1 FLAT \"sparse\" 0".to_owned(), "Overlap"),
        ("RW 1 FLAT \"sparse\" 0\nRW 128 SPARSE \"sparse\"".to_owned(), "Overlap"),
        ("RW 127 SPARSE \"sparse\"".to_owned(), "ExtentSize"),
        ("RW 2 SPARSE \"flat\"".to_owned(), "Damaged"),
        ("RW 2 SESPARSE \"flat\"".to_owned(), "Damaged"),
        ("RW 128 SPARSE \"stream\"".to_owned(), "Unsupported"),
        ("RW 128 SESPARSE \"sparse\"".to_owned(), "Damaged"),
    ];
    for (lines, problem) in table {
        folder.write("a.vmdk", base(1, &lines));
        let fault = fault(folder.open("a.vmdk"));
        assert!(fault.contains(problem), "{lines}: {fault}");
    }
    let whole = "RW 1 FLAT \"flat\" 1\nRW 1 FLAT \"flat\" 0";
    folder.write("a.vmdk", base(1, whole));
    folder.open("a.vmdk").unwrap();
}

#[test]
fn a_flat_extent_of_the_descriptor_itself_is_refused() {
    let folder = Folder::new();
    let comment = format!("#{}\n", "x".repeat(600));
    folder.write("a.vmdk", base(1, &format!("{comment}RW 1 FLAT \"a.vmdk\" 0")));
    assert!(fault(folder.open("a.vmdk")).contains("Overlap"));
}

#[test]
fn parents_are_found_by_any_kind_of_hint() {
    let folder = Folder::new();
    folder.write("flat", [0; 512]);
    let base_path = folder.write("bases/base.vmdk", base(5, "RW 1 ZERO"));
    folder.write("vm/beside.vmdk", base(5, "RW 1 ZERO"));
    let absolute = base_path.display().to_string();
    let table = [
        (absolute.as_str(), "bases/base.vmdk"),
        ("../bases/base.vmdk", "bases/base.vmdk"),
        ("..\\bases\\base.vmdk", "bases/base.vmdk"),
        ("beside.vmdk", "vm/beside.vmdk"),
        ("/nowhere/beside.vmdk", "vm/beside.vmdk"),
        ("C:\\Virtual Machines\\beside.vmdk", "vm/beside.vmdk"),
        ("\\\\server\\share\\beside.vmdk", "vm/beside.vmdk"),
    ];
    for (hint, expected) in table {
        folder.write("vm/a.vmdk", child(6, 5, hint, "RW 1 ZERO"));
        let disk = folder.open("vm/a.vmdk").unwrap();
        assert_eq!(disk.chain.len(), 2, "{hint}");
        assert_eq!(disk.chain[1].path, folder.path.join(expected), "{hint}");
        assert_eq!(disk.chain[0].vmdk.unwrap().parent_cid, Some(Cid(5)), "{hint}");
    }
    folder.write("vm/sparse.vmdk", monolithic_sparse(5, 1));
    folder.write("vm/a.vmdk", child(6, 5, "sparse.vmdk", "RW 1 ZERO"));
    assert!(matches!(folder.open("vm/a.vmdk").unwrap().chain[1].source, Source::File(_)));
}

#[test]
fn parents_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    folder.write("raw.img", [0; 512]);
    folder.write("disk.qcow2", qcow2(512));
    folder.write("s001.vmdk", sparse(1, None));
    folder.write("other.vmdk", base(4, "RW 1 ZERO"));
    folder.write("large.vmdk", base(5, "RW 2 ZERO"));
    folder.write("leaking.vmdk", base(5, "RW 1 FLAT \"/etc/passwd\" 0"));
    folder.write("middle.vmdk", child(5, 6, "a.vmdk", "RW 1 ZERO"));
    let table = [
        ("missing.vmdk", "ParentMissing"),
        ("/dev/zero", "NotRegular(\"a device\")"),
        ("raw.img", "ParentNotVmdk"),
        ("disk.qcow2", "ParentNotVmdk"),
        ("s001.vmdk", "IsExtent"),
        ("other.vmdk", "CidMismatch"),
        ("large.vmdk", "ParentLarger"),
        ("leaking.vmdk", "OutsideFolder"),
        ("a.vmdk", "Cycle"),
        ("middle.vmdk", "Cycle"),
    ];
    for (hint, problem) in table {
        folder.write("a.vmdk", child(6, 5, hint, "RW 1 ZERO"));
        let fault = fault(folder.open("a.vmdk"));
        assert!(fault.contains(problem), "{hint}: {fault}");
    }
    folder.write("small.vmdk", base(5, "RW 1 ZERO"));
    folder.write("a.vmdk", child(6, 5, "small.vmdk", "RW 2 ZERO"));
    assert_eq!(folder.open("a.vmdk").unwrap().size, 1024);
}

#[test]
fn chains_end_at_the_limit() {
    let folder = Folder::new();
    folder.write("0.vmdk", base(0, "RW 1 ZERO"));
    for i in 1..40 {
        folder
            .write(&format!("{i}.vmdk"), child(i, i - 1, &format!("{}.vmdk", i - 1), "RW 1 ZERO"));
    }
    assert_eq!(folder.open("32.vmdk").unwrap().chain.len(), MAX_LINKS);
    assert!(matches!(folder.open("33.vmdk").unwrap_err().problem(), Problem::TooDeep));
    assert!(matches!(folder.open("39.vmdk").unwrap_err().problem(), Problem::TooDeep));
}

#[test]
fn an_extent_in_the_place_of_a_disk_names_its_descriptor() {
    let folder = Folder::new();
    folder.write("a-s001.vmdk", sparse(128, None));
    folder.write("a-delta.vmdk", cowd(128));
    folder.write("a-sesparse.vmdk", sesparse(128));
    folder.write("a-flat.vmdk", [0; 5120]);
    folder.write("big.vmdk", [0; 100_000]);
    let lines = "RW 128 SPARSE \"a-s001.vmdk\"\nRW 128 VMFSSPARSE \"a-delta.vmdk\"\n\
                 RW 128 SESPARSE \"a-sesparse.vmdk\"\nRW 10 FLAT \"a-flat.vmdk\" 0";
    folder.write("a.vmdk", base(1, lines));
    folder.open("a.vmdk").unwrap();
    for name in ["a-s001.vmdk", "a-delta.vmdk", "a-sesparse.vmdk", "a-flat.vmdk"] {
        let path = folder.path.display();
        assert_eq!(
            folder.open(name).unwrap_err().to_string(),
            format!(
                "cannot open {path}/{name}: it holds only an extent of a disk\n  \
                 hint: open {path}/a.vmdk instead"
            )
        );
    }
    folder.write("lone-s001.vmdk", sparse(128, None));
    assert!(matches!(
        folder.open("lone-s001.vmdk").unwrap_err().problem(),
        Problem::IsExtent(None)
    ));
}

#[test]
fn descriptors_in_the_wrong_kind_of_file_are_refused() {
    let folder = Folder::new();
    let text = base(1, "RW 10 SPARSE \"b.vmdk\"");
    folder.write("b.vmdk", sparse(10, Some(&text)));
    assert!(fault(folder.open("b.vmdk")).contains("a file of its own"));
    let text = text.replace("twoGbMaxExtentFlat", "monolithicSparse");
    folder.write("a.vmdk", &text);
    assert!(fault(folder.open("a.vmdk")).contains("one file with both"));
    let two = text.replace("RW 10 SPARSE", "RW 9 ZERO\nRW 1 SPARSE");
    folder.write("b.vmdk", sparse(10, Some(&two)));
    assert!(fault(folder.open("b.vmdk")).contains("names other extents"));
    folder.write("b.vmdk", sparse(10, Some(&format!("{text}\0stale bytes"))));
    folder.open("b.vmdk").unwrap();
}

#[test]
fn messages_name_both_files_and_what_to_do() {
    let folder = Folder::new();
    folder.write("base.vmdk", base(0x9c01_aa3e, "RW 1 ZERO"));
    folder.write("a.vmdk", child(1, 0x712d_4f77, "base.vmdk", "RW 1 ZERO"));
    folder.write("b.vmdk", child(1, 2, "gone.vmdk", "RW 1 ZERO"));
    folder.write("c.vmdk", base(1, "RW 1 FLAT \"c-\u{1b}flat.vmdk\" 0"));
    folder.write("d.vmdk", base(1, "RW 1 FLAT \"d-flat.vmdk\" 0"));
    folder.write("e.vmdk", base(1, "RW 1 FLAT \"/etc/passwd\" 0"));
    folder.write("f.vmdk", base(1, r#"RW 1 FLAT "\\.\PhysicalDrive1" 0"#));
    folder.write("g.vmdk", [1; 512]);
    let table = [
        (
            "a.vmdk",
            "parent CID 712d4f77 expected, base.vmdk has 9c01aa3e\n  hint: the base was changed \
             after the snapshot was taken; look for an unchanged copy of it",
        ),
        (
            "b.vmdk",
            "its parent is missing; looked for DIR/gone.vmdk\n  hint: put the parent beside this \
             file, under its own name",
        ),
        ("c.vmdk", "line 6 has a file name with a control character"),
        (
            "d.vmdk",
            "its extent d-flat.vmdk does not exist\n  hint: copy it from where the disk came \
             from; all extents are needed",
        ),
        (
            "e.vmdk",
            "its extent /etc/passwd: it is outside of the image's folder, or hidden in it, at /etc/passwd\n  \
             hint: if it belongs to the disk, --allow-path /etc lets it be read",
        ),
        (
            "f.vmdk",
            "line 6 has \"\\\\.\\PhysicalDrive1\": a physical device of another machine, not a file\n  \
             hint: if there is a copy of it in a file, open that with --format raw",
        ),
        (
            "g.vmdk",
            "not a VMDK, nor another disk image: neither a descriptor nor a known header\n  \
             hint: --format raw before -a reads it as plain sectors",
        ),
        ("none.vmdk", "No such file or directory"),
    ];
    let dir = folder.path.display().to_string();
    for (name, text) in table {
        let expected = format!("cannot open {dir}/{name}: {}", text.replace("DIR", &dir));
        assert_eq!(folder.open(name).unwrap_err().to_string(), expected);
    }
}

#[test]
fn names_reach_the_terminal_without_control_characters() {
    let folder = Folder::new();
    let error = folder.open("\u{1b}[2Jx.vmdk").unwrap_err().to_string();
    assert!(error.contains("\\u{1b}[2Jx.vmdk"), "{error}");
}

#[test]
fn a_lock_of_vmware_is_a_warning() {
    let folder = Folder::new();
    folder.write("base.vmdk", base(5, "RW 1 ZERO"));
    folder.write("a.vmdk", child(6, 5, "base.vmdk", "RW 1 ZERO"));
    folder.write("a.vmdk.lck/M1.lck", "");
    folder.write("base.vmdk.lck", "");
    let warnings = folder.open("a.vmdk").unwrap().warnings;
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].contains("a.vmdk.lck says"), "{warnings:?}");
    assert!(warnings[1].contains("base.vmdk.lck says"), "{warnings:?}");
}

#[test]
fn a_lone_extent_is_opened_where_the_user_says_so() {
    let folder = Folder::new();
    let as_vmdk = |name: &str| {
        let options = OpenOptions { format: Some(Format::Vmdk), ..OpenOptions::default() };
        Disk::open(&folder.path.join(name), &options)
    };
    let rows =
        [("s001.vmdk", sparse(128, None)), ("delta.vmdk", cowd(128)), ("se.vmdk", sesparse(128))];
    for (name, bytes) in rows {
        let path = folder.write(name, bytes);
        let refusal = folder.open(name).unwrap_err().to_string();
        assert!(refusal.contains("--format vmdk before -a opens the extent alone"), "{refusal}");
        let disk = as_vmdk(name).unwrap();
        assert_eq!(disk.size, 128 * 512, "{name}");
        assert!(disk.warnings[0].contains("one extent of a disk, opened alone"), "{name}");
        let options = OpenOptions { format: Some(Format::Vmdk), ..OpenOptions::default() };
        assert!(Disk::open_for_writing(&path, &options).is_err(), "{name}");
    }
    // One that has its descriptor is no disk by itself.
    folder.write("whole.vmdk", base(1, "RW 128 SPARSE \"s001.vmdk\""));
    let refusal = as_vmdk("s001.vmdk").unwrap_err().to_string();
    assert!(refusal.contains("whole.vmdk instead"), "{refusal}");
}
