//! `guestimg doctor`: what this host offers to a mount, what it lacks, and what to do about it.
//! The confinement is not guessed: a program is started in it. Where a command mends what is missing,
//! the hint is that command.

use std::env;
use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use serde::Serialize;

use super::output::say;
use crate::session::fuse_device;
use crate::session::launch::cache_folder;
use crate::session::templates;
use crate::sys;
use crate::vm::accelerator::{Accelerator, Verdict};
use crate::vm::appliance::Appliance;
use crate::vm::confinement::{Confinement, LayerState, Policy, Program};
use crate::vm::find_qemu;

/// Says what this host offers to a mount: QEMU, KVM, FUSE, kernel, confinement, appliance, template
#[derive(Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a thing stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Good,
    /// Mounts work, with less.
    Less,
    /// Mounts do not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    subject: &'static str,
    state: State,
    found: String,
    hint: Option<&'static str>,
}

impl Finding {
    fn new(subject: &'static str, state: State, found: impl Display) -> Self {
        Self { subject, state, found: found.to_string(), hint: None }
    }

    fn hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Display>> {
    let mut findings = Vec::new();
    let qemu = find_qemu();
    findings.push(match &qemu {
        Ok(qemu) => version(qemu),
        Err(_) => Finding::new("QEMU", State::Bad, "no qemu-system-x86_64")
            .hint("install it (Debian: apt install qemu-system-x86), or name it in $GUESTMNT_QEMU"),
    });
    let (kvm, accelerator) = kvm(qemu.as_deref().unwrap_or(Path::new("")));
    findings.push(kvm);
    findings.extend([fuse(), fusermount(), kernel(), user_namespaces(), landlock()]);
    findings.extend(confinement());
    findings.extend(appliance(qemu.ok().as_deref(), accelerator));
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&findings).map_err(super::boxed)?);
    } else {
        findings.iter().for_each(print);
    }
    let worst = findings.iter().map(|finding| finding.state).max().unwrap_or(State::Good);
    Ok(match worst {
        State::Good => ExitCode::SUCCESS,
        State::Less => ExitCode::from(2),
        State::Bad => ExitCode::from(3),
    })
}

fn print(finding: &Finding) {
    let mark = match finding.state {
        State::Good => "ok",
        State::Less => "less",
        State::Bad => "BAD",
    };
    say!("{mark:<5} {:<18} {}", finding.subject, finding.found);
    if let Some(hint) = finding.hint {
        say!("      {:<18} hint: {hint}", "");
    }
}

fn version(qemu: &Path) -> Finding {
    let output = match Command::new(qemu).arg("--version").output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            return Finding::new(
                "QEMU",
                State::Bad,
                format!("{}: {}", qemu.display(), output.status),
            );
        }
        Err(error) => {
            return Finding::new("QEMU", State::Bad, format!("{}: {error}", qemu.display()));
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    let found = format!("{}: {line}", qemu.display());
    let numbers = line.split("version ").nth(1).and_then(|rest| {
        let mut parts = rest.split(['.', ' ']).map(str::parse::<u32>);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    });
    if numbers.is_some_and(|numbers| numbers >= (8, 2)) {
        Finding::new("QEMU", State::Good, found)
    } else {
        Finding::new("QEMU", State::Less, found).hint(
            "8.2 or later maps a template's memory without being able to write it (Debian 12, with \
                   backports: apt install -t bookworm-backports qemu-system-x86)",
        )
    }
}

/// What is said wherever the guest is translated.
const TCG: &str = "TCG runs the guest; by QEMU's own word it is not a security boundary: \
    the confinement is the wall, and KVM the better one";

fn kvm(qemu: &Path) -> (Finding, Accelerator) {
    let device = fs::File::options().read(true).write(true).open("/dev/kvm");
    let remembered = Verdict::of(qemu, cache_folder().as_deref()).remembered();
    let less = |found: &str| Finding::new("KVM", State::Less, format!("{found}. {TCG}"));
    match (device, remembered) {
        (Err(error), _) => {
            let finding = less(&format!("/dev/kvm: {error}"));
            let hint = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "as root, `usermod -aG kvm USER` with your name, then log in anew"
                }
                _ => {
                    "as root, `modprobe kvm_intel` or `modprobe kvm_amd`; the firmware, and the host \
                     of a virtual machine, have to allow it"
                }
            };
            (finding.hint(hint), Accelerator::Tcg)
        }
        (Ok(_), Some(false)) => (
            less("/dev/kvm opens, but did not run a guest since this boot")
                .hint("`guestmnt --prepare --accel kvm` tries again, and says why not"),
            Accelerator::Tcg,
        ),
        (Ok(_), Some(true)) => {
            (Finding::new("KVM", State::Good, "/dev/kvm has run a guest"), Accelerator::Kvm)
        }
        (Ok(_), None) => (
            Finding::new(
                "KVM",
                State::Good,
                "/dev/kvm opens; the first mount will show whether it works",
            ),
            Accelerator::Kvm,
        ),
    }
}

fn fuse() -> Finding {
    match fuse_device::check() {
        Ok(()) => Finding::new("FUSE", State::Good, fuse_device::PATH),
        Err(error) => Finding::new("FUSE", State::Bad, &error).hint(error.hint()),
    }
}

fn fusermount() -> Finding {
    const SUBJECT: &str = "fusermount3";
    let path = env::var_os("PATH").unwrap_or_default();
    let found =
        env::split_paths(&path).map(|folder| folder.join(SUBJECT)).find(|file| file.is_file());
    let Some(found) = found else {
        return Finding::new(SUBJECT, State::Bad, "not found")
            .hint("install it (Debian: apt install fuse3)");
    };
    let mode = fs::metadata(&found).map_or(0, |stat| stat.permissions().mode());
    if mode & 0o4000 != 0 || nix::unistd::geteuid().is_root() {
        Finding::new(SUBJECT, State::Good, found.display())
    } else {
        let text = format!("{} does not run as root", found.display());
        Finding::new(SUBJECT, State::Bad, text)
            .hint("it needs its set-user-id bit to mount for users: as root, `chmod u+s` it")
    }
}

/// The oldest kernel that has all calls that are made, and the oldest with all layers around QEMU.
const KERNELS: [(u32, u32); 2] = [(5, 11), (6, 12)];

fn kernel() -> Finding {
    const SUBJECT: &str = "kernel";
    let release = match nix::sys::utsname::uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(errno) => return Finding::new(SUBJECT, State::Less, errno),
    };
    let state = fitness(&release);
    let finding = Finding::new(SUBJECT, state, format!("Linux {release}"));
    match state {
        State::Good => finding,
        _ => finding.hint(
            "5.11 or later mounts, 6.12 or later confines QEMU by all layers (Debian 12, \
                           with backports: apt install -t bookworm-backports linux-image-amd64)",
        ),
    }
}

/// What the kernel `release` lets a mount do. One whose number cannot be read is tried.
fn fitness(release: &str) -> State {
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse().ok());
    match numbers.next().zip(numbers.next()) {
        Some(version) if version < KERNELS[0] => State::Bad,
        Some(version) if version >= KERNELS[1] => State::Good,
        _ => State::Less,
    }
}

/// The switches by which distributions keep users from making user namespaces.
fn user_namespaces() -> Finding {
    const SUBJECT: &str = "user namespaces";
    let is = |name: &str, value: &str| {
        fs::read_to_string(Path::new("/proc/sys").join(name)).is_ok_and(|text| text.trim() == value)
    };
    let less = |found| Finding::new(SUBJECT, State::Less, found);
    if nix::unistd::geteuid().is_root() {
        Finding::new(SUBJECT, State::Good, "root needs no leave")
    } else if is("user/max_user_namespaces", "0") {
        less("none are allowed").hint("as root, `sysctl user.max_user_namespaces=10000`")
    } else if is("kernel/unprivileged_userns_clone", "0") {
        less("not for users").hint("as root, `sysctl kernel.unprivileged_userns_clone=1`")
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        less("AppArmor leaves them without rights").hint(
            "an AppArmor profile for guestmnt with `userns,` gives them back, or for all programs, \
                   as root, `sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
        )
    } else {
        Finding::new(SUBJECT, State::Good, "no switch is set against them")
    }
}

fn landlock() -> Finding {
    match sys::landlock_abi() {
        0 => Finding::new("Landlock", State::Less, "this kernel has none, or it is not enabled")
            .hint("Linux 5.13 or later, booted with landlock in its list of security modules"),
        abi @ 1..6 => Finding::new(
            "Landlock",
            State::Less,
            format!("interface {abi}: files, but not yet all of network, devices and signals"),
        )
        .hint("Linux 6.12 or later has all that is made use of"),
        abi => Finding::new("Landlock", State::Good, format!("interface {abi}")),
    }
}

/// A program that does nothing, in the confinement.
fn confinement() -> Vec<Finding> {
    const SUBJECT: &str = "confinement";
    let bad = |error: &dyn Display| vec![Finding::new(SUBJECT, State::Bad, error)];
    let (me, null) = match (env::current_exe(), fs::File::options().write(true).open("/dev/null")) {
        (Ok(me), Ok(null)) => (me, null),
        (Err(error), _) | (_, Err(error)) => return bad(&error),
    };
    let arguments = ["--version".into()];
    let program = Program::alone(&me, &arguments, null.as_fd());
    match Confinement::new(Policy::BestEffort).start(&program) {
        Err(error) => bad(&error),
        Ok((mut process, report)) => {
            process.wait();
            let finding = |state: &LayerState| {
                let good = if state.missing.is_none() { State::Good } else { State::Less };
                Finding::new(SUBJECT, good, state)
            };
            report.0.iter().map(finding).collect()
        }
    }
}

fn appliance(qemu: Option<&Path>, accelerator: Accelerator) -> Vec<Finding> {
    let appliance = match Appliance::find() {
        Ok(appliance) => appliance,
        Err(error) => {
            return vec![Finding::new("appliance", State::Bad, error)];
        }
    };
    let folder = appliance.kernel.parent().map(PathBuf::from).unwrap_or_default();
    let found = format!("{}: Linux {}", folder.display(), appliance.manifest.kernel);
    let mut findings = vec![Finding::new("appliance", State::Good, found)];
    if let Some(qemu) = qemu {
        findings.push(if templates::is_there(qemu, &appliance, accelerator) {
            Finding::new("template", State::Good, format!("there is one for {accelerator}"))
        } else {
            Finding::new("template", State::Good, "none yet; the first mount makes it")
                .hint("`guestmnt --prepare` makes it now")
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_their_numbers() {
        let table = [
            ("4.19.0-27-amd64", State::Bad),
            ("5.10.0", State::Bad),
            ("5.11.0", State::Less),
            ("6.1.0-40-amd64", State::Less),
            ("6.12", State::Good),
            ("6.12.95+deb12-amd64", State::Good),
            ("10.0-rc1", State::Good),
            ("next", State::Less),
        ];
        for (release, state) in table {
            assert!(fitness(release) == state, "{release}");
        }
    }
}
