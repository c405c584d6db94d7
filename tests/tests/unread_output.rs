//! guestimg whose output nobody reads to the end, as in `guestimg tar … | head`.

use std::io::pipe;
use std::process::Stdio;

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::specimen;
use xtask::disks::filesystems::Kind;

/// 128 and the number of SIGPIPE, as a shell shows those whom it ended.
const ENDED_BY_SIGPIPE: i32 = 141;

#[test]
fn every_subcommand_ends_without_a_word() {
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let disk = ["--format", "raw", "-a", text(&image)];
    // What the first VM of a user says is no matter here.
    let finished = place.run("guestimg", &[&["ls"], &disk[..]].concat());
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let table: [(&str, &[&str]); 7] = [
        ("tar", &disk),
        ("ls", &disk),
        ("cat", &["--format", "raw", "-a", text(&image), "/5000011-bytes"]),
        ("filesystems", &disk),
        ("inspect", &["--json", "--format", "raw", "-a", text(&image)]),
        ("chain", &[text(&image)]),
        ("doctor", &[]),
    ];
    for (subcommand, arguments) in table {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut command = place.command("guestimg", &[&[subcommand], arguments].concat());
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        drop(command);
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{subcommand}");
        assert_eq!(output.status.code(), Some(ENDED_BY_SIGPIPE), "{subcommand}");
    }
    place.assert_clean(&[]);
}
