//! `cargo xtask demo`: the README's examples, run for real by an ordinary user.

use crate::appliance;
use crate::disks::{Disks, NEWEST, SYSTEM};
use crate::error::Error;
use crate::kernel::Source;
use crate::places::Places;
use crate::release;
use crate::setup;
use crate::stage::{Finished, Leftovers, Stage};

/// Sets up, builds, runs the examples and cleans up.
///
/// # Errors
/// Where an example does not behave as the README says, or leaves something behind.
pub fn run(places: &Places) -> Result<(), Error> {
    setup::ensure(places)?;
    appliance::build(&Source::Debian, places)?;
    release::build(places)?;
    let disks = Disks::ensure(places)?;
    let stage = Stage::new(places, &disks)?;
    println!("\nIn {}, as an ordinary user:", stage.path().display());
    examples(&stage)?;
    let folder = stage.path().to_path_buf();
    let leftovers = stage.finish()?;
    if !leftovers.is_empty() {
        return Err(Error::unfit(
            describe(&leftovers),
            "this is a bug of guestmnt, please tell us",
        ));
    }
    println!("\nNothing is left: no process, no mount, no file; {} is removed.", folder.display());
    println!("\nBy hand, with any folder of yours:");
    println!(
        "  {} -a {} -m /dev/sda2 --ro FOLDER",
        places.release().join("guestmnt").display(),
        disks.path(NEWEST).display()
    );
    println!("  {} FOLDER", places.release().join("guestunmnt").display());
    Ok(())
}

fn examples(stage: &Stage) -> Result<(), Error> {
    let (mnt2, mnt3) = ("mnt2", "mnt3");
    stage.own_folder(mnt2)?;
    stage.own_folder(mnt3)?;
    let system = ["-a", SYSTEM, "-m", "/dev/sda1", "-a", NEWEST];

    println!("\n0. Once: the VM that later mounts restore");
    expect(stage, "guestmnt", &["--prepare"], 0)?;

    println!("\n1. A partition of a snapshot, three links above its base");
    expect(stage, "guestmnt", &["-a", NEWEST, "-m", "/dev/sda2", "--ro", mnt3], 0)?;
    expect(stage, "ls", &["-l", mnt3], 0)?;
    expect_text(stage, &format!("{mnt3}/ufos/ufo.txt"), "Ufos are not real\n")?;
    expect_text(stage, &format!("{mnt3}/state.txt"), "snapshot 3\n")?;

    println!("\n2. The same, mounted into a folder of another disk");
    let nested = [&system[..], &["-m", "/dev/sdb2:/mounts/mnt2", "--ro", mnt2]].concat();
    expect(stage, "guestmnt", &nested, 0)?;
    expect(stage, "ls", &[mnt2, &format!("{mnt2}/mounts/mnt2")], 0)?;

    println!("\n3. Unmounting");
    expect(stage, "guestunmnt", &[mnt3], 0)?;
    expect(stage, "guestunmnt", &[mnt2], 0)?;

    println!("\n4. A folder that is not in the image: status 1, nothing mounted");
    let nowhere = [&system[..], &["-m", "/dev/sdb2:/mounts/mnt4", "--ro", mnt2]].concat();
    let refused = expect(stage, "guestmnt", &nowhere, 1)?;
    for expected in [
        "cannot mount /dev/sdb2 on /mounts/mnt4: no such directory in the image",
        "Did you mean to mount one of these filesystems?",
        "/dev/sdb2 (ntfs)",
    ] {
        if !refused.printed.contains(expected) {
            return Err(unexpected(&format!("the message lacks \"{expected}\"")));
        }
    }
    let leftovers = stage.leftovers()?;
    if leftovers.is_empty() { Ok(()) } else { Err(unexpected(&describe(&leftovers))) }
}

/// Runs a command, shows it with what it printed and how long it took, and checks its status.
fn expect(stage: &Stage, program: &str, args: &[&str], code: i32) -> Result<Finished, Error> {
    let mut command = stage.command(program);
    command.args(args);
    println!("$ {program} {}", args.join(" "));
    let finished = stage.run(command)?;
    print!("{}", finished.printed);
    println!("  [{}, {:.3} s]", finished.status, finished.took.as_secs_f64());
    if finished.status.code() == Some(code) {
        Ok(finished)
    } else {
        Err(unexpected(&format!("{program} should end with status {code}")))
    }
}

fn expect_text(stage: &Stage, file: &str, expected: &str) -> Result<(), Error> {
    let shown = expect(stage, "cat", &[file], 0)?;
    if shown.printed == expected {
        Ok(())
    } else {
        Err(unexpected(&format!("{file} should hold \"{}\"", expected.escape_debug())))
    }
}

fn unexpected(what: &str) -> Error {
    Error::unfit(format!("the demo is not as it should be: {what}"), "try cargo xtask test")
}

fn describe(leftovers: &Leftovers) -> String {
    let mounts = leftovers.mounts.iter().map(|path| format!("mounted: {}", path.display()));
    let processes = leftovers.processes.iter().map(|(pid, line)| format!("running: {pid} {line}"));
    let files = leftovers.files.iter().map(|path| format!("a file: {}", path.display()));
    mounts
        .chain(processes)
        .chain(files)
        .fold("something is left".into(), |text, line| text + "\n  " + &line)
}
