//! Files that are no disk images that are read here, and by which bytes they are known: archives,
//! compressed files, forensic containers, backups, documents.
//!
//! Read as plain sectors they would be disks without a partition, and their hash would pass for that
//! of the disk in them.

use super::SECTOR_SIZE;
use super::error::Problem;
use super::file::ImageFile;

/// Bytes at the start that are looked at; what is text has to be text all along.
const START: usize = 4096;

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What it is, behind "it is".
    pub what: &'static str,
    /// What to do with it.
    pub hint: &'static str,
}

const EWF: &str = "ewfmount FILE DIR shows the disk in it as DIR/ewf1, xmount does as well";
const CONVERT: &str = "convert it to a raw disk with the program that made it";
const UNZIP: &str = "unpack it, as with unzip or 7z x, and open the disk that comes out";
const UN7Z: &str = "unpack it, as with 7z x, and open the disk that comes out";
const RESTORE: &str = "restore it to a raw disk with the program that made it";
const OTHER: &str = "--format raw reads it as plain sectors all the same";

/// Bytes at a place, what has them, and what to do.
const MAGICS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"EVF\x09\x0d\x0a\xff\x00", "a disk in the format of EnCase (E01, EWF)", EWF),
    (0, b"EVF2\x0d\x0a\x81\x00", "a disk in the format of EnCase 7 (Ex01, EWF2)", EWF),
    (0, b"LVF\x09\x0d\x0a\xff\x00", "a collection of files of EnCase (L01)", CONVERT),
    (0, b"LEF2\x0d\x0a\x81\x00", "a collection of files of EnCase 7 (Lx01)", CONVERT),
    (0, b"AFF10\x0d\x0a\x00", "a disk in the Advanced Forensic Format (AFF)", CONVERT),
    (0, b"\x1f\x8b\x08", "a file compressed with gzip", "gunzip -k FILE unpacks it"),
    (0, b"\xfd7zXZ\x00", "a file compressed with xz", "xz -dk FILE unpacks it"),
    (0, b"\x28\xb5\x2f\xfd", "a file compressed with zstd", "zstd -d FILE unpacks it"),
    (0, b"\x04\x22\x4d\x18", "a file compressed with lz4", "lz4 -dk FILE unpacks it"),
    (0, b"LZIP\x01", "a file compressed with lzip", "lzip -dk FILE unpacks it"),
    (0, b"\x89LZO\x00\x0d\x0a\x1a\x0a", "a file compressed with lzop", "lzop -d FILE unpacks it"),
    (0, b"PK\x03\x04", "a ZIP archive", UNZIP),
    (0, b"PK\x05\x06", "an empty ZIP archive", UNZIP),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UN7Z),
    (0, b"Rar!\x1a\x07", "a RAR archive", UN7Z),
    (0, b"MSCF\x00\x00\x00\x00", "a cabinet archive", UN7Z),
    (
        0,
        b"MSWIM\x00\x00\x00",
        "a Windows image (WIM): files, not a disk",
        "7z x or wimapply unpacks it",
    ),
    (0, b"VMA\x00", "a backup of Proxmox (VMA)", "vma extract FILE DIR unpacks the disks in it"),
    (0, b"\xfe\xef\x01", "a backup of Ghost", RESTORE),
    (0, b"\xce\x24\xb9\xa2\x20\x00\x00\x00", "a backup of Acronis (TIB)", RESTORE),
    (0, b"PaRtImAgE-VoLuMe", "an image of Partimage", RESTORE),
    (
        0,
        b"partclone-image",
        "an image of Partclone",
        "partclone.restore -C -s FILE -O OUT restores it",
    ),
    (
        0,
        b"\x3a\xff\x26\xed",
        "a sparse image of Android",
        "simg2img FILE OUT makes a raw disk of it",
    ),
    (0, b"MComprHD", "a disk of MAME (CHD)", "chdman extracthd makes a raw disk of it"),
    (
        0,
        b"Bochs Virtual HD Image",
        "a disk of Bochs",
        "qemu-img convert -f bochs makes a raw disk of it",
    ),
    (0, b"sprs", "a sparse image of macOS", CONVERT),
    (0, b"encrcdsa", "an encrypted image of macOS", CONVERT),
    (0, b"cdsaencr", "an encrypted image of macOS", CONVERT),
    (0, b"\x7fELF", "a program (ELF)", OTHER),
    (0, b"%PDF-", "a document (PDF)", OTHER),
    (0, b"SQLite format 3\x00", "a database of SQLite", OTHER),
    (0, b"!<arch>\n", "an archive of ar, as Debian's packages are", OTHER),
    (0, b"\xed\xab\xee\xdb", "a package of RPM", OTHER),
    (0, b"070701", "a cpio archive", "cpio -idF FILE unpacks it"),
    (0, b"070702", "a cpio archive", "cpio -idF FILE unpacks it"),
    (0, b"\x89PNG\x0d\x0a\x1a\x0a", "a picture (PNG)", OTHER),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", OTHER),
    (0, b"PAGEDU", "a memory dump of Windows", OTHER),
    (0, b"EMiL", "a memory dump of LiME", OTHER),
    (257, b"ustar", "a tar archive", "tar -xf FILE unpacks it"),
];

/// What `file` is, where its bytes leave no doubt that it is no disk.
///
/// # Errors
/// [`Problem::Io`].
pub fn of(file: &ImageFile) -> Result<Option<Foreign>, Problem> {
    let start = file.start(START)?;
    if let Some(found) = of_start(&start) {
        return Ok(Some(found));
    }
    if let Some(at) = file.len.checked_sub(SECTOR_SIZE)
        && file.header::<4>(at, "last sector")? == *b"koly"
    {
        let hint = "dmg2img FILE OUT makes a raw disk of it, as hdiutil convert does";
        return Ok(Some(Foreign { what: "a disk image of macOS (DMG)", hint }));
    }
    Ok(None)
}

fn of_start(start: &[u8]) -> Option<Foreign> {
    let has = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let found = MAGICS.iter().find(|(at, magic, ..)| has(*at, magic));
    if let Some(&(_, magic, what, hint)) = found {
        if magic.starts_with(b"PK") && start.windows(7).any(|part| part == b"aff4://") {
            let what = "a disk in the Advanced Forensic Format (AFF4)";
            return Some(Foreign { what, hint: CONVERT });
        }
        return Some(Foreign { what, hint });
    }
    // A block begins behind the size.
    if has(0, b"BZh") && (has(4, b"1AY&SY") || has(4, b"\x17\x72\x45\x38\x50\x90")) {
        let hint = "bunzip2 -k FILE unpacks it";
        return Some(Foreign { what: "a file compressed with bzip2", hint });
    }
    let portable =
        start.get(0x3c..0x40).map(|at| u32::from_le_bytes(at.try_into().expect("4 bytes")));
    let header = portable.and_then(|at| usize::try_from(at).ok());
    if has(0, b"MZ") && header.is_some_and(|at| has(at, b"PE\0\0")) {
        return Some(Foreign { what: "a program of Windows", hint: OTHER });
    }
    is_text(start).then_some(Foreign { what: "text", hint: OTHER })
}

/// Whether there are lines of text from the start to the end of what is given. The last character
/// may be cut.
fn is_text(start: &[u8]) -> bool {
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => {
            std::str::from_utf8(&start[..e.valid_up_to()]).expect("it is valid up to there")
        }
        Err(_) => return false,
    };
    let allowed = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t' | '\x0c');
    text.contains('\n') && text.chars().all(allowed)
}

/// Whether `file`, of no known format, begins like a disk: empty, or with a partition table,
/// filesystem or volume that can be told from the host. What is neither may be one all the same.
///
/// # Errors
/// [`Problem::Io`].
pub fn begins_like_a_disk(file: &ImageFile) -> Result<bool, Problem> {
    /// Places of magics in the first 64 KiB and a little.
    const SIGNATURES: &[(usize, &[u8])] = &[
        (510, b"\x55\xaa"),
        (512, b"EFI PART"),
        (4096, b"EFI PART"),
        (512, b"PM"),
        (512, b"\x57\x45\x56\x82"),
        (0, b"\x57\x45\x56\x82"),
        (0, b"LUKS\xba\xbe"),
        (0, b"LABELONE"),
        (512, b"LABELONE"),
        (1024, b"LABELONE"),
        (1536, b"LABELONE"),
        (0, b"\xfc\x4e\x2b\xa9"),
        (4096, b"\xfc\x4e\x2b\xa9"),
        (0, b"XFSB"),
        (0, b"hsqs"),
        (0, b"sqsh"),
        (0, b"\x45\x3d\xcd\x28"),
        (0, b"\x28\xcd\x3d\x45"),
        (0, b"\xce\xfa\xad\x1b"),
        (0, b"\x0b\xe5\xa9\x41"),
        (0, b"\xc9\xc2\xd4\xc1"),
        (0, b"bluestore block device"),
        (0, b"SFOZ"),
        (32, b"1SFB"),
        (88, b"CS"),
        (508, b"\xda\xbe"),
        (544, b"1SFB"),
        (0, b"-rom1fs-"),
        (0, b"JFS1"),
        (3, b"-FVE-FS-"),
        (32, b"NXSB"),
        (1024, b"BD"),
        (1024, b"H+"),
        (1024, b"HX"),
        (1024, b"\x10\x20\xf5\xf2"),
        (1024, b"\xe2\xe1\xf5\xe0"),
        (1030, b"\x34\x34"),
        (1040, b"\x7f\x13"),
        (1040, b"\x68\x24"),
        (1040, b"\x8f\x13"),
        (1040, b"\x78\x24"),
        (1040, b"\x13\x7f"),
        (1040, b"\x13\x8f"),
        (1040, b"\x24\x68"),
        (1040, b"\x24\x78"),
        (1048, b"\x5a\x4d"),
        (1024, b"\xf5\xfc\x01\xa5"),
        (1080, b"\x53\xef"),
        (4086, b"SWAPSPACE2"),
        (4086, b"SWAP-SPACE"),
        (4120, b"\xc6\x85\x73\xf6"),
        (8192, b"\x49\xe8\x95\xf9"),
        (8192, b"\xa5\x01\xfc\xf5"),
        (9564, b"\x54\x19\x01\x00"),
        (9564, b"\x00\x01\x19\x54"),
        (9564, b"\x19\x01\x54\x19"),
        (32_768, b"JFS1"),
        (32_769, b"CD001"),
        (32_769, b"BEA01"),
        (65_588, b"ReIsEr"),
        (65_600, b"_BHRfS_M"),
        (65_536, b"\x01\x16\x19\x70"),
        (66_908, b"\x19\x01\x54\x19"),
        (66_908, b"\x19\x54\x01\x19"),
    ];
    const LEN: usize = 68 << 10;
    let start = file.start(LEN)?;
    let has =
        |&(at, magic): &(usize, &[u8])| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
    Ok(start.iter().all(|&byte| byte == 0) || SIGNATURES.iter().any(has))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Folder;
    use super::super::{Disk, Format, OpenOptions};

    /// A file of a MiB that begins like this.
    fn beginning(start: &[u8]) -> Vec<u8> {
        let noise = (0..1 << 20).map(|n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]);
        let mut bytes: Vec<u8> = noise.collect();
        bytes[..start.len()].copy_from_slice(start);
        bytes
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name_and_opens_as_raw() {
        let mut tar = vec![b'a'; 262];
        tar[257..].copy_from_slice(b"ustar");
        let mut aff4 = b"PK\x03\x04".to_vec();
        aff4.extend(b"................aff4://1234");
        let mut dmg = beginning(b"\x01");
        let at = dmg.len() - 512;
        dmg[at..at + 4].copy_from_slice(b"koly");
        let mut program = vec![0; 256];
        program[..2].copy_from_slice(b"MZ");
        program[0x3c] = 0x80;
        program[0x80..0x84].copy_from_slice(b"PE\0\0");
        let rows: Vec<(Vec<u8>, &str, &str)> = vec![
            (beginning(b"EVF\x09\x0d\x0a\xff\x00"), "EnCase (E01", "ewfmount"),
            (beginning(b"EVF2\x0d\x0a\x81\x00"), "Ex01", "ewfmount"),
            (beginning(b"AFF10\x0d\x0a\x00"), "(AFF)", "hint: "),
            (beginning(&aff4), "(AFF4)", "hint: "),
            (beginning(b"\x1f\x8b\x08"), "gzip", "gunzip -k"),
            (beginning(b"\xfd7zXZ\x00"), "with xz", "xz -dk"),
            (beginning(b"\x28\xb5\x2f\xfd"), "zstd", "zstd -d"),
            (beginning(b"BZh91AY&SY"), "bzip2", "bunzip2 -k"),
            (beginning(b"\x04\x22\x4d\x18"), "lz4", "lz4 -d"),
            (beginning(b"PK\x03\x04"), "a ZIP archive", "unzip"),
            (beginning(b"7z\xbc\xaf\x27\x1c"), "a 7z archive", "7z x"),
            (beginning(b"Rar!\x1a\x07\x01\x00"), "a RAR archive", "7z x"),
            (beginning(&tar), "a tar archive", "tar -xf"),
            (dmg, "(DMG)", "dmg2img"),
            (beginning(b"MSWIM\x00\x00\x00"), "(WIM)", "hint: "),
            (beginning(b"VMA\x00"), "Proxmox", "vma extract"),
            (beginning(b"\xfe\xef\x01\x02"), "Ghost", "hint: "),
            (beginning(b"\x7fELF"), "(ELF)", "--format raw"),
            (beginning(&program), "a program of Windows", "--format raw"),
            (beginning(b"%PDF-1.7"), "(PDF)", "--format raw"),
            (b"Dear reader,\nthis is no disk: \xc3\xa4.\n".repeat(99), "text", "--format raw"),
        ];
        for (bytes, what, hint) in rows {
            for name in ["a.img", "a.qcow2"] {
                let folder = Folder::new();
                folder.write(name, &bytes);
                let error = folder.open(name).unwrap_err().to_string();
                assert!(error.contains(what) && error.contains(hint), "{what}: {error}");
                assert!(error.contains("not a disk"), "{what}: {error}");
                let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
                let disk = Disk::open(&folder.path.join(name), &options).unwrap();
                assert_eq!(disk.warnings, Vec::<String>::new(), "{what}");
            }
        }
    }

    #[test]
    fn bytes_of_no_known_kind_are_opened_with_a_warning() {
        let mut boot = beginning(b"\x33");
        boot[510..512].copy_from_slice(b"\x55\xaa");
        let rows = [
            (beginning(b"\x33"), true),
            (vec![7; 1 << 16], true),
            (boot, false),
            (vec![0; 1 << 20], false),
        ];
        for (bytes, warns) in rows {
            let folder = Folder::new();
            folder.write("a.img", &bytes);
            let disk = folder.open("a.img").unwrap();
            let told = disk.warnings.iter().any(|warning| warning.contains("begins like no disk"));
            assert_eq!(told, warns, "{:?}", disk.warnings);
        }
    }
}
