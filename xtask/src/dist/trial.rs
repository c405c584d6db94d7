//! Installs the package, mounts a disk with it as an ordinary user, and removes it again.
//!
//! Root installs with dpkg itself, below a folder of its own, so that the machine's packages stay as
//! they are; who is not root unpacks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::disks::{Disks, SYSTEM};
use crate::places::Places;
use crate::process::Tool;
use crate::release::BINARIES;
use crate::stage::Stage;

/// Tries `package` out. Returns what was done.
///
/// # Errors
/// Where something of it does not work, or is left behind.
pub fn run(places: &Places, disks: &Disks, package: &Path) -> Result<String, Error> {
    let stage = Stage::new(places, disks)?;
    let root = stage.own_folder("root")?;
    let how = if nix::unistd::geteuid().is_root() {
        dpkg(&root)?.arg("--install").arg(package).run()?;
        "installed, mounted, purged"
    } else {
        Tool::new("dpkg-deb").arg("--extract").args([package, &root]).run()?;
        "unpacked, mounted"
    };
    mount(&stage, &root)?;
    if nix::unistd::geteuid().is_root() {
        dpkg(&root)?.args(["--purge", "guestmnt"]).run()?;
        let left: Vec<&str> = BINARIES
            .into_iter()
            .chain(["../lib/guestmnt"])
            .filter(|name| root.join("usr/bin").join(name).exists())
            .collect();
        if !left.is_empty() {
            return Err(unfit(&format!("purging it leaves {left:?}")));
        }
    }
    let leftovers = stage.finish()?;
    if !leftovers.is_empty() {
        return Err(unfit(&format!("it leaves behind {leftovers:?}")));
    }
    Ok(how.to_owned())
}

/// dpkg, for packages below `root` alone. What the package depends on is the machine's.
fn dpkg(root: &Path) -> Result<Tool, Error> {
    let state = root.join("var/lib/dpkg");
    for folder in ["info", "updates"] {
        let folder = state.join(folder);
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    }
    let status = state.join("status");
    let file = fs::File::options().create(true).append(true).open(&status);
    file.map_err(Error::file("create", &status))?;
    Ok(Tool::new("dpkg").arg(format!("--root={}", root.display())).arg("--force-depends"))
}

/// Mounts a disk with what was installed, and reads a folder of it.
fn mount(stage: &Stage, root: &Path) -> Result<(), Error> {
    let mountpoint = stage.own_folder("mnt-package")?;
    let ours = |program: &str| {
        let mut command: Command = stage.command(text(&root.join("usr/bin").join(program)));
        command.env("GUESTMNT_APPLIANCE", root.join("usr/lib/guestmnt"));
        command
    };
    let expect = |mut command: Command, arguments: &[&str], what: &str| {
        command.args(arguments);
        let finished = stage.run(command)?;
        match finished.status.success() && finished.printed.contains(what) {
            true => Ok(()),
            false => {
                Err(unfit(&format!("{arguments:?}: {}\n{}", finished.status, finished.printed)))
            }
        }
    };
    for program in BINARIES {
        expect(ours(program), &["--version"], env!("CARGO_PKG_VERSION"))?;
    }
    let disk = ["-a", SYSTEM, "-m", "/dev/sda1"];
    expect(ours("guestmnt"), &[&disk[..], &[text(&mountpoint)]].concat(), "")?;
    expect(stage.command("ls"), &[text(&mountpoint)], "Windows")?;
    expect(ours("guestunmnt"), &[text(&mountpoint)], "")?;
    let page: PathBuf = root.join("usr/share/man/man1/guestmnt.1.gz");
    expect(stage.command("gzip"), &["-dc", text(&page)], "guestmnt")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

fn unfit(what: &str) -> Error {
    Error::unfit(format!("the package does not work: {what}"), "try cargo xtask test")
}
