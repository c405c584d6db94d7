//! libguestfs' guestmount, as the ordinary user, without KVM, with the kernel that our appliance
//! has too.
//!
//! libguestfs looks for a kernel in /boot, where a container has none. So its appliance is made
//! once, by its own supermin, from the kernel in the target folder, and given to it as a fixed
//! appliance. That spares guestmount supermin's look at every start.
//! Source: supermin(1), ENVIRONMENT VARIABLES; guestfs(3), FIXED APPLIANCE.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Side;
use crate::Error;
use crate::bench::disk::{Access, Image};
use crate::bench::ground::{Ground, Spot};
use crate::disks::sparse;
use crate::kernel::{Kernel, Source};
use crate::places::Places;
use crate::process::{Tool, find_program};
use crate::progress::{size, step};
use crate::user::Ordinary;

/// Where Debian, Fedora and Arch keep what supermin makes the appliance of.
const RECIPES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/guestfs/supermin.d",
    "/usr/lib64/guestfs/supermin.d",
    "/usr/lib/guestfs/supermin.d",
];

/// supermin looks at it, whatever kernel it is told to take.
const MODULES: &str = "/lib/modules";

/// Tells libguestfs that the folder is an appliance, and not what one is made of.
const FIXED: &str = "README.fixed";

/// Mounts by `guestmount`.
pub struct Guestmount {
    appliance: PathBuf,
}

impl Guestmount {
    /// Makes the appliance in the target folder, unless it is there, and returns its folder.
    ///
    /// # Errors
    /// [`Error::Unfit`] saying what is missing, or those of supermin.
    pub fn prepare(places: &Places) -> Result<PathBuf, Error> {
        let installed = ["guestmount", "guestunmount", "supermin"];
        let recipe = RECIPES.iter().find(|path| Path::new(path).is_dir());
        let (Some(recipe), true) = (recipe, installed.iter().all(|p| find_program(p).is_some()))
        else {
            return Err(Error::unfit("guestmount is not installed", "apt-get install guestmount"));
        };
        let kernel = Kernel::present(&Source::Debian, places)?.ok_or_else(|| {
            Error::unfit("there is no kernel in the target folder", "cargo xtask build-appliance")
        })?;
        let finished = places.target().join("guestfs").join(&kernel.release);
        if !finished.join(FIXED).exists() {
            step("guestmount's appliance", || {
                build(recipe, &kernel, &finished)?;
                Ok(((), size(sparse::size_on_disk(&finished)?)))
            })?;
        }
        Ok(finished)
    }

    /// This side, with the appliance of [`Guestmount::prepare`] in a folder that the user can
    /// read.
    #[must_use]
    pub fn new(appliance: PathBuf) -> Self {
        Self { appliance }
    }
}

impl Guestmount {
    /// A file that takes what is written, over a raw image: guestmount has nothing of its own for
    /// that.
    fn overlay(&self, ground: &Ground, image: &Image, spot: &Spot) -> Result<PathBuf, Error> {
        let overlay = spot.scratch.join("changes.qcow2");
        let mut create = self.command(ground, Path::new("qemu-img"), spot);
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&image.disk);
        create.arg(&overlay);
        ground.run(create)?;
        Ok(overlay)
    }
}

/// As the ordinary user: what only root may read stays out of a file that anybody may.
fn build(recipe: &str, kernel: &Kernel, finished: &Path) -> Result<(), Error> {
    let user = Ordinary::find()?;
    let folder = tempfile::tempdir().map_err(Error::file("write in", std::env::temp_dir()))?;
    let path = |name: &str| folder.path().join(name);
    chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))
        .map_err(Error::file("change the owner of", folder.path()))?;
    let modules = path("lib/modules").join(&kernel.release);
    sparse::link_tree(&kernel.modules, &modules)?;
    sparse::link_or_copy(&kernel.image, &path("vmlinuz"))?;
    Tool::new("depmod").arg("--basedir").arg(folder.path()).arg(&kernel.release).run()?;
    let modules_folder = ModulesFolder::ensure()?;
    let become_user = if nix::unistd::geteuid().is_root() {
        Tool::new("setpriv")
            .arg(format!("--reuid={}", user.uid))
            .arg(format!("--regid={}", user.gid))
            .args(["--clear-groups", "supermin"])
    } else {
        Tool::new("supermin")
    };
    become_user
        .args(["--build", "--copy-kernel", "--format", "ext2", "--host-cpu", "x86_64", recipe])
        .arg("-o")
        .arg(path("appliance"))
        .env("TMPDIR", folder.path())
        .env("SUPERMIN_KERNEL", path("vmlinuz"))
        .env("SUPERMIN_KERNEL_VERSION", &kernel.release)
        .env("SUPERMIN_MODULES", &modules)
        .run()?;
    drop(modules_folder);
    let parent = finished.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
    let staging = tempfile::tempdir_in(parent).map_err(Error::file("write in", parent))?;
    let made = staging.path().join("appliance");
    sparse::link_tree(&path("appliance"), &made)?;
    let mark = made.join(FIXED);
    fs::write(&mark, "").map_err(Error::file("write", &mark))?;
    fs::rename(&made, finished).map_err(Error::file("create", finished))
}

/// [`MODULES`], removed again if we made it and it is still empty.
struct ModulesFolder {
    is_ours: bool,
}

impl ModulesFolder {
    fn ensure() -> Result<Self, Error> {
        if Path::new(MODULES).exists() {
            return Ok(Self { is_ours: false });
        }
        fs::create_dir(MODULES).map_err(|error| {
            Error::unfit(
                format!("supermin needs a folder {MODULES}, and it cannot be made: {error}"),
                format!("as root: mkdir {MODULES}"),
            )
        })?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for ModulesFolder {
    fn drop(&mut self) {
        if self.is_ours {
            // Who put something into it wants it to stay.
            let _ = fs::remove_dir(MODULES);
        }
    }
}

impl Side for Guestmount {
    fn name(&self) -> &'static str {
        "guestmount"
    }

    fn mount_words(
        &self,
        ground: &Ground,
        image: &Image,
        spot: &Spot,
    ) -> Result<Vec<OsString>, Error> {
        let mut words: Vec<OsString> = vec!["guestmount".into()];
        match image.access {
            Access::Read => words.extend(["-a".into(), image.disk.as_os_str().into()]),
            Access::Write => {
                let overlay = self.overlay(ground, image, spot)?;
                words.extend(["--format=qcow2".into(), "-a".into(), overlay.into()]);
            }
        }
        let access = match image.access {
            Access::Read => "--ro",
            Access::Write => "--rw",
        };
        words.extend(["-m".into(), image.device.into(), access.into()]);
        words.push(spot.mountpoint.as_os_str().into());
        Ok(words)
    }

    fn unmount_words(&self, _: &Ground, spot: &Spot) -> Vec<OsString> {
        vec!["guestunmount".into(), spot.mountpoint.as_os_str().into()]
    }

    fn command(&self, ground: &Ground, program: &Path, spot: &Spot) -> Command {
        let mut command = ground.as_user(program);
        command
            .env("LIBGUESTFS_PATH", &self.appliance)
            .env("LIBGUESTFS_BACKEND", "direct")
            .env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg")
            .env("TMPDIR", &spot.scratch);
        command
    }
}
