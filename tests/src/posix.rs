//! pjdfstest over a mount and over a plain folder: the cases that end otherwise on the mount have to be
//! those that `docs/posix.md` lists with the reasons.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::unistd::{Group, User};
use tempfile::TempDir;
use xtask::pjdfstest::PROGRAM;
use xtask::skips::skip;

use crate::program::given;

/// Where the differences are listed.
const LIST: &str = include_str!("../../docs/posix.md");

/// Users in whose names cases act, as every distribution has them.
const ACTORS: [&str; 2] = ["nobody", "daemon"];

/// Seconds that a case waits for a time to become another one. The clocks of both kernels go on every
/// 4 milliseconds.
const NAP: &str = "0.02";

/// A filesystem that is not the one under test.
const ELSEWHERE: &str = "/dev/shm";

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// As it should.
    Passed,
    /// It did not.
    Failed,
    /// It does not fit the filesystem or the user.
    Skipped,
}

impl End {
    /// As the list calls it.
    fn parse(text: &str) -> Self {
        match text {
            "pass" => Self::Passed,
            "fail" => Self::Failed,
            "is skipped" => Self::Skipped,
            other => panic!("the list has an unknown end: {other}"),
        }
    }
}

/// The suite, ready to run. `None`, and a skip, where it is not to be had.
#[must_use]
pub fn suite() -> Option<Suite> {
    let program = given(PROGRAM);
    if !program.exists() {
        skip("pjdfstest could not be had");
        return None;
    }
    let mut actors = Vec::new();
    for name in ACTORS {
        let user = User::from_name(name).ok().flatten();
        let Some(group) = user.and_then(|user| Group::from_gid(user.gid).ok().flatten()) else {
            skip(&format!("there is no user {name}, in whose name POSIX behaviour is tried"));
            return None;
        };
        actors.push(format!("[{name:?}, {:?}]", group.name));
    }
    let folder = tempfile::tempdir().expect("a folder is to be had");
    let elsewhere = match Path::new(ELSEWHERE).exists() {
        true => format!("secondary_fs = {ELSEWHERE:?}\n"),
        false => String::new(),
    };
    let settings = format!(
        "[features]\n{elsewhere}posix_fallocate = {{}}\nrename_ctime = {{}}\nutime_now = {{}}\n\
         utimensat = {{}}\n[settings]\nnaptime = {NAP}\n[dummy_auth]\nentries = [{}]\n",
        actors.join(", ")
    );
    fs::write(folder.path().join("settings.toml"), settings).expect("the folder is ours");
    Some(Suite { program, folder })
}

/// As [`suite`].
pub struct Suite {
    program: PathBuf,
    /// With the suite's settings.
    folder: TempDir,
}

impl Suite {
    /// Runs it over a mount and, at the same time, over the plain folder `plain`; what ends otherwise
    /// has to be what is listed for mounts called `mount`.
    ///
    /// # Panics
    /// Where it is not.
    pub fn assert_differs_as_listed(&self, mount: &str, mounted: &Path, plain: &Path) {
        let (ours, theirs) = thread::scope(|scope| {
            let theirs = scope.spawn(|| self.run(plain));
            (self.run(mounted), theirs.join().expect("it only runs a program"))
        });
        assert!(ours.len() > 300, "there are {} cases", ours.len());
        let found: BTreeMap<_, _> = ours
            .iter()
            .filter(|(case, (end, _))| theirs.get(*case).map(|(end, _)| end) != Some(end))
            .map(|(case, (end, _))| (case.clone(), *end))
            .collect();
        let why: Vec<_> = found.keys().map(|case| format!("{case}:\n{}", ours[case].1)).collect();
        assert_eq!(found, listed(mount), "{mount}\n{}", why.join("\n"));
    }

    /// Runs it in a folder. How each case ended, and what was said of it.
    fn run(&self, folder: &Path) -> BTreeMap<String, (End, String)> {
        let settings = self.folder.path().join("settings.toml");
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(settings).arg("-p").arg(folder);
        command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "0");
        let output = command.current_dir(self.folder.path()).output().expect("it can be run");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let cases = cases(&said);
        assert!(!cases.is_empty(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        cases
    }
}

/// `chmod::enoent_named_file   ok`, and below it indented lines where there is more to say.
fn cases(said: &str) -> BTreeMap<String, (End, String)> {
    let mut cases: BTreeMap<String, (End, String)> = BTreeMap::new();
    let mut last = String::new();
    for line in said.lines() {
        let mut words = line.split_whitespace();
        let end = match (words.next(), words.next(), words.next()) {
            (Some(case), Some("ok"), None) => Some((case, End::Passed)),
            (Some(case), Some("FAILED"), None) => Some((case, End::Failed)),
            (Some(case), Some("skipped"), None) => Some((case, End::Skipped)),
            _ => None,
        };
        if let Some((case, end)) = end.filter(|_| !line.starts_with(char::is_whitespace)) {
            last = case.to_owned();
            cases.insert(last.clone(), (end, String::new()));
        } else if let Some((_, more)) = cases.get_mut(&last) {
            *more += line;
            *more += "\n";
        }
    }
    cases
}

/// What is listed for mounts called `mount`: `| mounts | cases | end | why |`.
fn listed(mount: &str) -> BTreeMap<String, End> {
    let rows = LIST.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix("| ")?.split(" | ").collect();
        cells[0].split(", ").any(|name| name == mount).then_some(cells)
    });
    let cases = rows.flat_map(|cells| {
        let end = End::parse(cells[2]);
        assert!(!cells[3].is_empty(), "a difference has a reason");
        cells[1].split(", ").map(move |case| (case.trim_matches('`').to_owned(), end))
    });
    cases.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_suite_says_is_told_apart_by_case() {
        let said = "\nlink::one       ok\nlink::two     FAILED\n\tleft: 0\n\tok then\n\n\
                    link::three  skipped\n\tno reason\n\nSummary: 1 failed, 398 total\n";
        let cases = cases(said);
        let ends: Vec<_> = cases.iter().map(|(case, (end, _))| (case.as_str(), *end)).collect();
        let expected =
            [("link::one", End::Passed), ("link::three", End::Skipped), ("link::two", End::Failed)];
        assert_eq!(ends, expected);
        assert_eq!(cases["link::two"].1, "\tleft: 0\n\tok then\n\n");
    }
}
