//! The built programs, run as a user runs them: in a folder of their own, with a clean
//! environment.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use xtask::disks::Disks;

/// A scratch folder in which the programs are run. What is still mounted in it when
/// it is dropped is unmounted, and fails the test.
pub struct Workplace {
    folder: TempDir,
    /// The cache folder that all tests share, with a template in it, or its own.
    cache: PathBuf,
}

/// A folder that `cargo xtask test` names in the environment.
///
/// # Panics
/// Where it does not: then the tests were not started by it.
#[must_use]
pub fn given(variable: &str) -> PathBuf {
    let folder = env::var_os(variable);
    folder.unwrap_or_else(|| panic!("${variable} is not set; run `cargo xtask test`")).into()
}

/// The demo's disks.
///
/// # Panics
/// As [`given`].
#[must_use]
pub fn disks() -> Disks {
    Disks::in_folder(given("GUESTMNT_DISKS"))
}

/// Whether the tests run as root. Only programs named `as_root…` do.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

impl Workplace {
    /// A new one, which others can look into.
    ///
    /// # Panics
    /// Where there can be none.
    #[must_use]
    pub fn new() -> Self {
        let mut place = Self::with_own_cache();
        // What the ordinary user's tests share is not root's to use.
        if !is_root() {
            place.cache = given("GUESTMNT_TEST_CACHE");
        }
        place
    }

    /// A new one without a template or anything else that was kept.
    ///
    /// # Panics
    /// Where there can be none.
    #[must_use]
    pub fn with_own_cache() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("guestmnt-test-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .expect("a folder is to be had");
        let cache = folder.path().join(".cache");
        Self { folder, cache }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A new folder in it.
    ///
    /// # Panics
    /// Where it cannot be made.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir(&path).expect("a new folder");
        path
    }

    /// `program` with `arguments`, in this folder and with a clean environment.
    #[must_use]
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(given("GUESTMNT_BIN_DIR").join(program));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.path())
            .env("XDG_CACHE_HOME", &self.cache)
            .env("TMPDIR", self.path())
            .env("GUESTMNT_APPLIANCE", given("GUESTMNT_APPLIANCE"))
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs `program` to its end.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn run(&self, program: &str, arguments: &[&str]) -> Finished {
        Finished::of(self.command(program, arguments).output().expect("the program starts"))
    }

    /// `guestmnt` with `arguments`, which has to succeed.
    ///
    /// # Panics
    /// Where it fails.
    pub fn mount(&self, arguments: &[&str]) {
        let finished = self.run("guestmnt", arguments);
        assert!(finished.status == Some(0), "guestmnt {arguments:?}: {finished:?}");
    }

    /// `guestunmnt` of `path`, which has to succeed.
    ///
    /// # Panics
    /// Where it fails.
    pub fn unmount(&self, path: &Path) {
        let finished = self.run("guestunmnt", &[text(path)]);
        assert!(finished.status == Some(0), "guestunmnt {}: {finished:?}", path.display());
    }

    /// The processes that name this folder on their command line or as their folder for temporary files.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != std::process::id())
            .filter(|pid| self.concerns(*pid))
            .collect()
    }

    fn concerns(&self, pid: u32) -> bool {
        let mine = self.path().as_os_str().as_encoded_bytes();
        let named = |file: &str| {
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            text.windows(mine.len()).any(|window| window == mine)
        };
        named("cmdline")
            || named("environ")
            || parent_concerns(pid, &|parent| self.concerns(parent))
    }

    /// The mounts below this folder.
    #[must_use]
    pub fn mounts(&self) -> Vec<PathBuf> {
        let mounts = guestmnt::session::mountpoint::mounts().expect("the mount table is readable");
        mounts
            .into_iter()
            .map(|mount| mount.mountpoint)
            .filter(|mountpoint| mountpoint.starts_with(self.path()))
            .collect()
    }

    /// Checks that nothing runs or is mounted for this folder any more, and that no file but
    /// `expected` is left in it. Processes that were killed get a moment to go.
    ///
    /// # Panics
    /// Where something is left.
    pub fn assert_clean(&self, expected: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !(self.processes().is_empty() && self.mounts().is_empty()) {
            assert!(
                Instant::now() < deadline,
                "left behind: processes {:?}, mounts {:?}",
                self.processes(),
                self.mounts()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut left: Vec<String> = fs::read_dir(self.path())
            .expect("the folder is readable")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name != ".cache" && !expected.contains(&name.as_str()))
            .collect();
        left.sort();
        assert!(left.is_empty(), "left behind: files {left:?}");
    }
}

impl Default for Workplace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        let mounts = self.mounts();
        for mount in &mounts {
            // The test fails below or has failed already; this only tidies up.
            let _ = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mount).status();
        }
        if !std::thread::panicking() {
            assert!(mounts.is_empty(), "still mounted: {mounts:?}");
        }
    }
}

/// QEMU runs with an empty environment and names no folder; it is known by its parent.
fn parent_concerns(pid: u32, concerns: &dyn Fn(u32) -> bool) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent =
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
    comm.starts_with("qemu-system")
        && parent.is_some_and(|parent: u32| parent > 1 && concerns(parent))
}

/// How a program ended and what it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its exit status, or `None` where a signal ended it.
    pub status: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            status: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// A path of the tests, which are all UTF-8.
///
/// # Panics
/// Where it is not.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str().or_else(|| OsStr::to_str(path.as_os_str())).expect("paths of tests are UTF-8")
}
