//! Descriptors as they are, as they might be, and as QEMU gets them.

use super::*;
use crate::image::NameError;

/// As VMware Workstation writes it.
const SNAPSHOT: &str = r#"# Disk DescriptorFile
version=1
encoding="windows-1252"
CID=9c01aa3e
parentCID=fffffffe
isNativeSnapshot="no"
createType="twoGbMaxExtentSparse"
parentFileNameHint="C:\VMs\base.vmdk"
# Extent description
RW 4192256 SPARSE "disk 1-000001-s001.vmdk"
RDONLY 2048 ZERO
RW 63 FLAT "disk-f002.vmdk" 128
RW 8 SESPARSE "disk-sesparse.vmdk"
RW 1 VMFS "disk-flat.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.uuid = "60 00 C2 9a"
"#;

fn name(text: &str) -> FileName {
    FileName::new(text.as_bytes()).unwrap()
}

#[test]
fn a_snapshot_is_read() {
    let extent = |access, sectors, storage| Extent { access, sectors, storage };
    let expected = Descriptor {
        create_type: CreateType::TwoGbMaxExtentSparse,
        cid: Cid(0x9c01_aa3e),
        parent: Some(ParentLink {
            cid: Some(Cid(0xffff_fffe)),
            by: ParentBy::Hint(name("C:\\VMs\\base.vmdk")),
        }),
        ids: None,
        extents: vec![
            extent(Access::ReadWrite, 4_192_256, Storage::Sparse(name("disk 1-000001-s001.vmdk"))),
            extent(Access::ReadOnly, 2048, Storage::Zero),
            extent(
                Access::ReadWrite,
                63,
                Storage::Flat { name: name("disk-f002.vmdk"), first_sector: 128 },
            ),
            extent(Access::ReadWrite, 8, Storage::SeSparse(name("disk-sesparse.vmdk"))),
            extent(
                Access::ReadWrite,
                1,
                Storage::Flat { name: name("disk-flat.vmdk"), first_sector: 0 },
            ),
        ],
    };
    assert_eq!(expected.sectors(), 4_192_256 + 2048 + 63 + 8 + 1);
    let variants = [
        SNAPSHOT.to_owned(),
        SNAPSHOT.replace('\n', "\r\n"),
        SNAPSHOT.replace("\nCID=", "\n CID\t = "),
        SNAPSHOT.replace("ZERO", "ZERO \t"),
        format!("{SNAPSHOT}\0\0\0"),
        format!("{SNAPSHOT}\0C2 9a\"\n\0\0"),
    ];
    for text in variants {
        assert_eq!(Descriptor::parse(text.as_bytes()).unwrap(), expected, "{text}");
    }
}

#[test]
fn qemu_gets_all_extents_and_no_byte_of_the_original() {
    let descriptor = Descriptor::parse(SNAPSHOT.as_bytes()).unwrap();
    let text = descriptor.rewritten(|i| format!("/dev/fdset/{i}"));
    let expected = "# Disk DescriptorFile\nversion=1\nCID=9c01aa3e\nparentCID=fffffffe\n\
                    createType=\"twoGbMaxExtentSparse\"\n\
                    RW 4192256 SPARSE \"/dev/fdset/0\"\n\
                    RW 2048 FLAT \"/dev/fdset/1\" 0\n\
                    RW 63 FLAT \"/dev/fdset/2\" 128\n\
                    RW 8 SESPARSE \"/dev/fdset/3\"\n\
                    RW 1 FLAT \"/dev/fdset/4\" 0\n";
    assert_eq!(String::from_utf8(text).unwrap(), expected);
}

#[test]
fn bad_lines_are_refused_with_their_number() {
    let number = u64::MAX.to_string();
    let huge = format!("RW {} ZERO", MAX_DISK_SIZE / SECTOR_SIZE + 1);
    let overflow = format!("RW {number} FLAT \"a\" 0");
    let table: &[(&str, LineProblem)] = &[
        ("RV 1 ZERO", LineProblem::Unknown),
        ("what is this", LineProblem::Unknown),
        ("ddb.x = \"\0\"", LineProblem::Nul),
        ("\0", LineProblem::Nul),
        ("NOACCESS 1 ZERO", LineProblem::NoAccess),
        ("RW", LineProblem::Sectors),
        ("RW 0 ZERO", LineProblem::Sectors),
        ("RW -1 ZERO", LineProblem::Sectors),
        ("RW +1 ZERO", LineProblem::Sectors),
        ("RW 1e3 ZERO", LineProblem::Sectors),
        ("RW 99999999999999999999 ZERO", LineProblem::Sectors),
        (&huge, LineProblem::Sectors),
        (&overflow, LineProblem::Sectors),
        ("RW 1", LineProblem::Form),
        ("RW 1 ZERO \"a\"", LineProblem::Form),
        ("RW 1 FLAT", LineProblem::Form),
        ("RW 1 FLAT a 0", LineProblem::Form),
        ("RW 1 FLAT \"a", LineProblem::Form),
        ("RW 1 FLAT \"a\nb\" 0", LineProblem::Form),
        ("RW 1 FLAT \"a\" -1", LineProblem::Form),
        ("RW 1 FLAT \"a\" 99999999999999999999", LineProblem::Form),
        ("RW 1 FLAT \"a\" 0 1 2 3", LineProblem::Form),
        ("RW 1 FLAT \"a\" uuid", LineProblem::Form),
        ("RW 1 SPARSE \"a\" 1", LineProblem::Form),
        ("RW 1 SPARSE \"a\" 0 1 2 3", LineProblem::Form),
        ("RW 1 NBD \"a\"", LineProblem::ExtentType("NBD".into())),
        (r#"RW 1 FLAT "\\.\PhysicalDrive1" 0"#, LineProblem::Device(r"\\.\PhysicalDrive1".into())),
        ("RW 1 FLAT \"\" 0", LineProblem::Name(NameError::Empty)),
        ("RW 1 FLAT \"a\rb\" 0", LineProblem::Name(NameError::Control)),
        ("RW 1 SPARSE \"nbd:h:1\"", LineProblem::Name(NameError::Protocol)),
        ("RW 1 SPARSE \"json:{}\"", LineProblem::Name(NameError::Protocol)),
        ("parentFileNameHint=\"ssh://h/f\"", LineProblem::Name(NameError::Protocol)),
        ("version=2", LineProblem::Repeated("version")),
        ("CID=1", LineProblem::Repeated("CID")),
        ("CID=", LineProblem::BadValue("CID")),
        ("CID=+1", LineProblem::BadValue("CID")),
        ("parentCID=123456789", LineProblem::BadValue("parentCID")),
        ("ddb.uuid.parent=\"1\"", LineProblem::BadValue("ddb.uuid")),
        ("createType=\"none\"", LineProblem::CreateType("none".into())),
        ("version=5", LineProblem::Version),
    ];
    for (line, expected) in table {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=2\n\
             parentFileNameHint=\"p\"\ncreateType=\"vmfs\"\n{line}\nRW 1 ZERO\n"
        );
        match Descriptor::parse(text.as_bytes()) {
            Err(Problem::Line { number: 7, problem }) if problem == *expected => {}
            other => panic!("{line:?} gave {other:?}"),
        }
    }
}

#[test]
fn whole_descriptors_that_lack_or_contradict_are_refused() {
    let full = "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\nRW 1 ZERO\n";
    assert!(Descriptor::parse(full.as_bytes()).is_ok());
    for (line, missing) in [("version=1", "version"), ("RW 1 ZERO", "extents")] {
        let text = full.replacen(&format!("{line}\n"), "", 1);
        match Descriptor::parse(text.as_bytes()) {
            Err(Problem::Lacks(what)) if what == missing => {}
            other => panic!("without {line}: {other:?}"),
        }
    }
    let orphan = full.replace("ffffffff", "12345678");
    assert!(matches!(
        Descriptor::parse(orphan.as_bytes()),
        Err(Problem::Lacks("parentFileNameHint"))
    ));
    let half = full.replace("parentCID=ffffffff", "parentFileNameHint=\"a\"");
    assert!(matches!(Descriptor::parse(half.as_bytes()), Err(Problem::Lacks("parentCID"))));
    let torn = format!("{full}parentFileNameHint=\"a\"");
    assert!(matches!(Descriptor::parse(torn.as_bytes()), Err(Problem::Damaged(_))));
}

#[test]
fn sizes_and_counts_are_limited() {
    let head = "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\n";
    let with =
        |line: &str, count| Descriptor::parse((head.to_owned() + &line.repeat(count)).as_bytes());
    let most = MAX_DISK_SIZE / SECTOR_SIZE;
    assert_eq!(with(&format!("RW {most} ZERO\n"), 1).unwrap().sectors(), most);
    assert!(matches!(with(&format!("RW {most} ZERO\n"), 2), Err(Problem::TooLarge)));
    assert_eq!(with("RW 1 ZERO\n", MAX_EXTENTS).unwrap().extents.len(), MAX_EXTENTS);
    assert!(matches!(with("RW 1 ZERO\n", MAX_EXTENTS + 1), Err(Problem::TooManyExtents)));
    assert!(matches!(with("#\n", MAX_DESCRIPTOR), Err(Problem::DescriptorTooLong)));
}

#[test]
fn every_flipped_byte_gives_an_error_or_a_descriptor_in_bounds() {
    for at in 0..SNAPSHOT.len() {
        for mask in 1..=255 {
            let mut text = SNAPSHOT.as_bytes().to_vec();
            text[at] ^= mask;
            let Ok(descriptor) = Descriptor::parse(&text) else { continue };
            assert!((1..=MAX_DISK_SIZE / SECTOR_SIZE).contains(&descriptor.sectors()));
            let rewritten = descriptor.rewritten(|i| format!("/dev/fdset/{i}"));
            assert_eq!(
                rewritten.iter().filter(|&&b| b == b'"').count(),
                2 * (descriptor.extents.len() + 1)
            );
        }
    }
}

#[test]
fn every_truncation_gives_an_error_or_a_descriptor() {
    for len in 0..SNAPSHOT.len() {
        if let Ok(descriptor) = Descriptor::parse(&SNAPSHOT.as_bytes()[..len]) {
            assert!(!descriptor.extents.is_empty());
        }
    }
}

#[test]
fn descriptors_are_told_from_other_files() {
    let table: &[(&[u8], bool)] = &[
        (b"# Disk DescriptorFile", true),
        (b"version=1\n", true),
        (b"# made by hand\r\n\r\nversion = 1\r\n", true),
        (b"", false),
        (b"# only a comment\n", false),
        (b"KDMV\nversion=1", false),
        (b"\0\nversion=1", false),
    ];
    for (start, expected) in table {
        assert_eq!(is_descriptor(start), *expected, "{start:?}");
    }
}

#[test]
fn dialects_say_the_same() {
    let text = "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=0000000a\n\
                parentCID=ffffffff\ncreateType=\"vmfs\"\nRW 20480 FLAT \"x-flat.vmdk\" 0\n";
    let expected = Descriptor::parse(text.as_bytes()).unwrap();
    let line = "RW 20480 FLAT \"x-flat.vmdk\" 0";
    let rows: Vec<Vec<u8>> = vec![
        text.replace('\n', "\r").into(),
        text.replace('\n', "\r\n").into(),
        format!("{}\0\0", text.replace('\n', "\r")).into(),
        format!("\u{feff}{text}").into(),
        format!("\u{feff}{}", text.replace("# Disk DescriptorFile\n", "")).into(),
        text.replace("0000000a", "0x0000000A").into(),
        text.replace(line, "rw 20480 flat \"x-flat.vmdk\" 0").into(),
        text.replace(line, &format!("{line} partition-uuid device-id")).into(),
        text.replace(line, &format!("{line} 5fbaabe3-6958-40ff-92a7-860e329aab41")).into(),
        text.replace("createType=\"vmfs\"", "CREATETYPE=\"VMFS\"").into(),
        text.replace("version", "Version").replace("CID", "cid").into(),
        text.replace("CID=ffffffff", "CID=ffffffff\nparentFileNameHint=\"\"").into(),
        text.replace("parentCID=ffffffff\n", "").into(),
        text.replace("FLAT", "VMFSRDM").into(),
    ];
    for bytes in rows {
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        assert!(is_descriptor(&bytes), "{shown}");
        assert_eq!(Descriptor::parse(&bytes).expect(&shown), expected, "{shown}");
    }
    for (create_type, expected) in [
        ("custom", CreateType::Custom),
        ("fullDevice", CreateType::FullDevice),
        ("partitionedDevice", CreateType::PartitionedDevice),
        ("vmfsRDM", CreateType::RawDeviceMap),
        ("", CreateType::Custom),
    ] {
        let line = format!("createType=\"{create_type}\"\n");
        let line = if create_type.is_empty() { "" } else { &line };
        let text = text.replace("createType=\"vmfs\"\n", line);
        let descriptor = Descriptor::parse(text.as_bytes()).unwrap();
        assert_eq!(descriptor.create_type, expected);
        // QEMU knows none of these.
        let rewritten = String::from_utf8(descriptor.rewritten(|i| i.to_string())).unwrap();
        assert!(rewritten.contains("createType=\"twoGbMaxExtentFlat\""), "{rewritten}");
    }
    let without_cid = text.replace("CID=0000000a\n", "");
    assert_eq!(Descriptor::parse(without_cid.as_bytes()).unwrap().cid, Cid(0));
    let zero = text.replace(line, &format!("{line}\nRW 480 ZERO \"\" 0"));
    assert_eq!(Descriptor::parse(zero.as_bytes()).unwrap().extents[1].storage, Storage::Zero);
}

#[test]
fn names_are_in_the_encoding_of_the_descriptor() {
    let text = b"version=1\nCID=1\nparentCID=2\ncreateType=\"vmfs\"\n\
                 parentFileNameHint=\"\xb2\xe2.vmdk\"\nRW 1 FLAT \"\xb2\xe2-flat.vmdk\"\n\
                 encoding=\"GBK\"\n";
    let descriptor = Descriptor::parse(text).unwrap();
    let Storage::Flat { name: extent, .. } = &descriptor.extents[0].storage else { panic!("flat") };
    assert_eq!(extent.as_path(), name("测-flat.vmdk").as_path());
    let ParentBy::Hint(hint) = descriptor.parent.unwrap().by else { panic!("a hint") };
    assert_eq!(hint.as_path(), name("测.vmdk").as_path());
}
