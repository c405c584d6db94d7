//! Which files a program and all that it starts open, as strace(1) sees their system calls.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::skips::skip;

use crate::program::Workplace;

/// A call that opened a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Open {
    /// Where the file really is, by the names of who opened it.
    pub path: PathBuf,
    /// The flags, by their names.
    pub flags: String,
}

impl Open {
    /// Whether the file's contents were out of reach all the same.
    #[must_use]
    pub fn is_path_only(&self) -> bool {
        self.has("O_PATH")
    }

    /// Whether the file could be written to.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.has("O_WRONLY") || self.has("O_RDWR")
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.split('|').any(|word| word == flag)
    }
}

/// Runs `program` in `place`, and returns its status and what was opened. `None`, and a skip, where
/// strace cannot be used.
///
/// # Panics
/// Where the trace cannot be read.
#[must_use]
pub fn traced(
    place: &Workplace,
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Option<(Option<i32>, Vec<Open>)> {
    let folder = tempfile::tempdir().expect("a folder is to be had");
    let untraced = place.command(program, arguments);
    let mut command = Command::new("strace");
    // A file for each thread, so that no call is cut in two by another's.
    command.args(["-ff", "-y", "-s", "4096", "--seccomp-bpf", "-qq"]);
    command.args(["-e", "trace=open,openat,openat2,creat"]);
    command.arg("-o").arg(folder.path().join("trace"));
    command.arg(untraced.get_program()).args(untraced.get_args()).current_dir(place.path());
    command.env_clear().envs(untraced.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.envs(environment.iter().copied());
    let Ok(output) = command.output() else {
        skip("strace is not installed");
        return None;
    };
    let mut opens = Vec::new();
    for entry in fs::read_dir(folder.path()).expect("the folder is ours") {
        let trace = fs::read(entry.expect("it is still there").path()).expect("it is ours");
        opens.extend(String::from_utf8_lossy(&trace).lines().filter_map(open));
    }
    if opens.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        skip(&format!("strace sees nothing here: {}", said.lines().next().unwrap_or_default()));
        return None;
    }
    opens.sort();
    opens.dedup();
    Some((output.status.code(), opens))
}

/// Reads `openat(AT_FDCWD</folder>, "name", O_RDONLY|O_CLOEXEC) = 3</folder/name>`; `None` for
/// whatever opened nothing.
fn open(line: &str) -> Option<Open> {
    let (call, result) = line.rsplit_once(" = ")?;
    let (number, path) = result.split_once('<')?;
    number.parse::<u32>().ok()?;
    let path = path.rsplit_once('>')?.0;
    // Those of openat2 stand in a struct.
    let flags = call.split([' ', ')', '=', ',']).find(|word| word.starts_with("O_"))?;
    Some(Open { path: Path::new(path).to_owned(), flags: flags.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_opened_something_are_read() {
        let table = [
            ("openat(AT_FDCWD</x>, \"a\", O_RDONLY|O_CLOEXEC) = 3</x/a>", Some(("/x/a", false))),
            (
                "openat(AT_FDCWD</x>, \"a\", O_RDWR|O_TMPFILE, 0600) = 9</x/#7>(deleted)",
                Some(("/x/#7", true)),
            ),
            (
                "openat2(5</x>, \"a\", {flags=O_RDONLY|O_PATH, resolve=RESOLVE_BENEATH}, 24) = 6</x/a>",
                Some(("/x/a", false)),
            ),
            ("creat(\"a\", 0600) = -1 EACCES (Permission denied)", None),
            ("openat(AT_FDCWD</x>, \"a\", O_RDONLY) = -1 ENOENT (No such file or directory)", None),
            ("+++ exited with 0 +++", None),
        ];
        for (line, expected) in table {
            let read = open(line);
            let read = read.as_ref().map(|open| (open.path.to_str().unwrap(), open.writes()));
            assert_eq!(read, expected, "{line}");
        }
    }
}
