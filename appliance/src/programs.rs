//! The programs that assemble volumes, as the distribution has them. They stand in a squashfs of
//! the initramfs that is mounted when the first of them is needed, or for a template.
//!
//! They are the only programs that ever run in the guest. What they get on their command lines are
//! names that were checked and nodes below `/dev`; secrets go to their standard input.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use guestmnt_protocol::message::Failure;

use crate::failure::{errno_of, explained};
use crate::modules::Modules;
use crate::sys;

/// The squashfs with `bin` and `lib`.
const IMAGE: &str = "/programs.squashfs";

/// Where it is mounted.
const FOLDER: &str = "/programs";

/// Bytes that are kept of what a program prints; a volume's line has some hundred.
const OUTPUT_MAX: u64 = 1 << 20;

/// Settings for all of them. There is no udev that could make nodes, or that could be waited for.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("DM_DISABLE_UDEV", "1"),
    ("MDADM_NO_UDEV", "1"),
    ("LVM_SUPPRESS_FD_WARNINGS", "1"),
    ("LC_ALL", "C"),
    ("OPENSSL_MODULES", "/programs/lib/ossl-modules"),
];

/// The programs, mounted or not.
#[derive(Default)]
pub struct Programs {
    mounted: Mutex<bool>,
}

/// What a program printed that ended well.
#[derive(Debug)]
pub struct Printed {
    /// On standard output.
    pub output: String,
    /// On standard error.
    pub said: String,
}

/// What a program that failed left.
#[derive(Debug)]
pub struct Failed {
    /// Its status; `None` where a signal ended it.
    pub status: Option<i32>,
    /// What it printed on standard error.
    pub said: String,
}

impl Failed {
    /// A failure with what the program said, the first line of which ends a sentence. What it advises
    /// of its own options is left out: nobody can give it any here.
    #[must_use]
    pub fn explained(&self, errno: Errno, what: &str) -> Failure {
        let lines = self.said.lines().filter_map(without_advice);
        let lines: Vec<String> = std::iter::once(what.to_owned()).chain(lines).collect();
        explained(errno, lines.join("\n"))
    }

    /// As [`Failed::explained`], with what can be done here.
    #[must_use]
    pub fn advised(&self, errno: Errno, what: &str, advice: &str) -> Failure {
        let mut failure = self.explained(errno, what);
        failure.detail.push_str("\nhint: ");
        failure.detail.push_str(advice);
        failure
    }
}

/// A line of a program without what it says of its options; `None` where nothing is left.
fn without_advice(line: &str) -> Option<String> {
    let is_advice = |part: &&str| {
        part.split_whitespace().any(|word| {
            let word = word.trim_start_matches(['\'', '"', '(']);
            word.starts_with("--") && word.len() > 2
        })
    };
    // A sentence, or what follows a dash or a comma.
    let (mut kept, mut rest) = (String::new(), line);
    while !rest.is_empty() {
        let end = [". ", ", ", " - "].iter().filter_map(|mark| Some(rest.find(mark)? + mark.len()));
        let (part, next) = rest.split_at(end.min().unwrap_or(rest.len()));
        if !is_advice(&part) {
            kept.push_str(part);
        }
        rest = next;
    }
    let kept = kept.trim_end().trim_end_matches([',', '-']).trim_end();
    (!kept.trim().is_empty()).then(|| kept.to_owned())
}

impl Programs {
    /// Makes sure that the programs are there.
    ///
    /// # Errors
    /// `ENOSYS` in an appliance without programs; else that of mounting them.
    pub fn make_ready(&self, modules: &Modules) -> Result<(), Failure> {
        // Mounted or not: there is nothing in between that a panic could have left.
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if !*mounted {
            mount_image(modules).map_err(|errno| match errno {
                Errno::ENOENT => explained(
                    Errno::ENOSYS,
                    "the appliance was built without the programs that this takes",
                ),
                other => explained(other, format!("no programs: {}", other.desc())),
            })?;
            *mounted = true;
        }
        Ok(())
    }

    /// Runs `program` with `input` and returns what it printed on standard output.
    ///
    /// # Errors
    /// As [`Programs::make_ready`]; the inner one where the program failed.
    pub fn run(
        &self,
        modules: &Modules,
        program: &str,
        arguments: &[&str],
        input: &[u8],
    ) -> Result<Result<String, Failed>, Failure> {
        let outcome = self.run_and_listen(modules, program, arguments, input)?;
        Ok(outcome.map(|printed| printed.output))
    }

    /// As [`Programs::run`], for programs that end well whatever they say on standard error.
    ///
    /// # Errors
    /// As [`Programs::run`].
    pub fn run_and_listen(
        &self,
        modules: &Modules,
        program: &str,
        arguments: &[&str],
        input: &[u8],
    ) -> Result<Result<Printed, Failed>, Failure> {
        self.make_ready(modules)?;
        let failed = |error: std::io::Error| {
            let errno = errno_of(&error);
            explained(errno, format!("cannot run {program} in the guest: {}", errno.desc()))
        };
        let mut child = Command::new(format!("{FOLDER}/lib/ld-linux-x86-64.so.2"))
            .args(["--library-path", &format!("{FOLDER}/lib")])
            .arg(format!("{FOLDER}/bin/{program}"))
            .args(arguments)
            .env_clear()
            .envs(ENVIRONMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (output, said) = converse(&mut child, input);
        let status = child.wait().map_err(failed)?;
        Ok(if status.success() {
            Ok(Printed { output, said })
        } else {
            Err(Failed { status: status.code(), said })
        })
    }
}

/// Gives a program its input and takes what it prints, all at once: none of the pipes can be full
/// and hold it up.
fn converse(child: &mut Child, input: &[u8]) -> (String, String) {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        // A program that does not read to the end has found what it looked for.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        let said = scope.spawn(move || stderr.map_or_else(String::new, text_of));
        let printed = stdout.map_or_else(String::new, text_of);
        (printed, said.join().unwrap_or_default())
    })
}

/// What comes out of a pipe, up to [`OUTPUT_MAX`]; what is behind that is read and dropped.
fn text_of(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // A pipe that breaks is one that has ended.
    let _ = pipe.by_ref().take(OUTPUT_MAX).read_to_end(&mut bytes);
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}

fn mount_image(modules: &Modules) -> nix::Result<()> {
    let open = |path: &str| File::open(path).map_err(|error| errno_of(&error));
    let image = open(IMAGE)?;
    // Those of the image and of what the programs set up: mapping, cryptography, RAID levels. Which of
    // them is the disks' matter. In a template all are loaded already.
    modules.load_all();
    let number = sys::free_loop(open("/dev/loop-control")?.as_fd())?;
    let node = format!("/dev/loop{number}");
    sys::attach_loop(open(&node)?.as_fd(), image.as_fd())?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(node.as_str()), FOLDER, Some("squashfs"), flags, None::<&str>)?;
    // LVM and mdadm keep locks and notes there.
    for folder in ["/run/lock/lvm", "/run/lvm", "/run/mdadm"] {
        fs::create_dir_all(folder).map_err(|error| errno_of(&error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_prints_more_than_is_kept_comes_to_its_end() {
        let mut child = Command::new("sh")
            .args(["-c", "cat; yes | head -c 3000000; echo no >&2"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let input = vec![b'x'; 200_000];
        let (printed, said) = converse(&mut child, &input);
        assert!(child.wait().unwrap().success());
        assert_eq!(printed.len(), usize::try_from(OUTPUT_MAX).unwrap());
        assert!(printed.starts_with("xxx"));
        assert_eq!(said, "no\n");
    }

    #[test]
    fn a_programs_advice_on_its_options_is_left_out() {
        let table = [
            (
                "mdadm: /dev/md0 assembled from 1 drive - not enough to start the array while not \
                 clean - consider --force.",
                Some(
                    "mdadm: /dev/md0 assembled from 1 drive - not enough to start the array while \
                     not clean",
                ),
            ),
            (
                "  Refusing activation of partial LV vg/root.  Use '--activationmode partial' to \
                 override.",
                Some("  Refusing activation of partial LV vg/root."),
            ),
            ("Use --force to override.", None),
            (
                "  Couldn't find device with uuid a--b.",
                Some("  Couldn't find device with uuid a--b."),
            ),
        ];
        for (line, expected) in table {
            assert_eq!(without_advice(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn an_appliance_without_programs_says_so() {
        let modules = Modules::new("/nowhere".into());
        let failure = Programs::default().run(&modules, "lvm", &[], &[]).unwrap_err();
        assert_eq!(i32::from(failure.errno), libc::ENOSYS);
    }
}
