//! Memory that a mount takes: its processes, and what of their memory is theirs alone.
//!
//! Pss counts a page that n processes share as an n-th of a page for each. A VM restored from a
//! template maps its RAM privately from the template's file: pages that it has not written are
//! the file's, in the page cache once for all mounts and given back when memory is short. With
//! one mount alone Pss would charge all of them to it. `own` leaves them out: it is Pss less the
//! pages, not yet copied, of large private file mappings. Nothing else that these programs map
//! privately from a file is that large; their program code stays in.
//!
//! Source: Documentation/filesystems/proc.rst, smaps.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::Error;

/// The least size of guest RAM, in KiB: what guestmnt takes for `--memsize`.
const LEAST_RAM_KIB: u64 = 64 << 10;

/// Memory of some processes, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// As the kernel counts it.
    pub pss_kib: u64,
    /// Without the pages of a template that have not been written.
    pub own_kib: u64,
}

impl Memory {
    /// Of `processes` together.
    ///
    /// # Errors
    /// [`Error::File`], for a process that has ended or that is not ours to look into.
    pub fn of(processes: &[i32]) -> Result<Self, Error> {
        let mut sum = Self::default();
        for pid in processes {
            let path = format!("/proc/{pid}/smaps");
            let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
            let one = parse(&text);
            sum.pss_kib += one.pss_kib;
            sum.own_kib += one.own_kib;
        }
        Ok(sum)
    }
}

/// A mapping's part of smaps.
#[derive(Default)]
struct Mapping {
    is_private_file: bool,
    size_kib: u64,
    pss_kib: u64,
    anonymous_kib: u64,
}

impl Mapping {
    /// `7f00-7f10 rw-p 00000000 fe:00 1234   /path`: an inode of 0 has no file.
    fn of_header(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (_, end) = words.next()?.split_once('-')?;
        u64::from_str_radix(end, 16).ok()?;
        let private = words.next()?.ends_with('p');
        let inode = words.nth(2)?;
        Some(Self { is_private_file: private && inode != "0", ..Self::default() })
    }

    /// Pages of a template that have not been written.
    fn template_kib(&self) -> u64 {
        if self.is_private_file && self.size_kib >= LEAST_RAM_KIB {
            self.pss_kib.saturating_sub(self.anonymous_kib)
        } else {
            0
        }
    }
}

fn parse(smaps: &str) -> Memory {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::of_header(line) {
            mappings.push(mapping);
            continue;
        }
        let Some(current) = mappings.last_mut() else { continue };
        let Some((name, value)) = line.split_once(':') else { continue };
        let kib = value.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok());
        match (name, kib) {
            ("Size", Some(kib)) => current.size_kib = kib,
            ("Pss", Some(kib)) => current.pss_kib = kib,
            ("Anonymous", Some(kib)) => current.anonymous_kib = kib,
            _ => {}
        }
    }
    let pss_kib = mappings.iter().map(|mapping| mapping.pss_kib).sum();
    let template: u64 = mappings.iter().map(Mapping::template_kib).sum();
    Memory { pss_kib, own_kib: pss_kib - template }
}

/// Processes that name `path` on their command lines, with all their descendants.
///
/// # Errors
/// [`Error::File`] without /proc.
pub fn processes_of(path: &Path) -> Result<Vec<i32>, Error> {
    let needle = path.as_os_str().as_encoded_bytes();
    let mut parents = Vec::new();
    let mut found = HashSet::new();
    for entry in fs::read_dir("/proc").map_err(Error::file("list", "/proc"))?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if words.windows(needle.len()).any(|window| window == needle) {
            found.insert(pid);
        }
        if let Some((state, parent)) = state_and_parent(&entry.path())
            && state != 'Z'
        {
            parents.push((pid, parent));
        }
    }
    loop {
        let children = parents.iter().filter(|(_, parent)| found.contains(parent));
        let fresh: Vec<i32> =
            children.map(|&(pid, _)| pid).filter(|pid| !found.contains(pid)).collect();
        if fresh.is_empty() {
            return Ok(found.into_iter().collect());
        }
        found.extend(fresh);
    }
}

/// Whether the process has not ended. One that waits to be reaped has.
#[must_use]
pub fn runs(pid: i32) -> bool {
    state_and_parent(Path::new(&format!("/proc/{pid}"))).is_some_and(|(state, _)| state != 'Z')
}

/// Source: proc_pid_stat(5). The name before them may hold anything, parentheses too.
fn state_and_parent(process: &Path) -> Option<(char, i32)> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_ascii_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn unwritten_pages_of_a_template_are_not_the_mounts_own() {
        let smaps = "\
55d0-55d1 r-xp 00001000 fe:00 77   /usr/bin/qemu-system-x86_64
Size:              16384 kB
Pss:                5000 kB
Anonymous:             0 kB
7f00-7f10 rw-p 00000000 fe:00 1234   /home/user/.cache/template/ram
Size:             262144 kB
Pss:               90000 kB
Anonymous:         20000 kB
VmFlags: rd wr mr
7f20-7f30 rw-s 00000000 00:01 9   /memfd:bulk (deleted)
Size:             262144 kB
Pss:                8000 kB
Anonymous:             0 kB
7f40-7f50 rw-p 00000000 00:00 0
Size:             300000 kB
Pss:                3000 kB
Anonymous:          3000 kB
";
        let expected = Memory { pss_kib: 106_000, own_kib: 36_000 };
        assert_eq!(parse(smaps), expected);
    }

    #[test]
    fn a_process_is_found_by_its_command_line_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60; :", "sh"])
            .arg(folder.path())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let found = loop {
            let found = processes_of(folder.path()).unwrap();
            if found.len() >= 2 {
                break found;
            }
        };

        let memory = Memory::of(&found).unwrap();

        assert!(found.contains(&pid));
        assert!(memory.own_kib > 0 && memory.own_kib <= memory.pss_kib);
        for &pid in &found {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        child.wait().unwrap();
        assert!(!runs(pid));
    }
}
