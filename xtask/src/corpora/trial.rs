//! One image, listed and read whole by guestimg as an ordinary user, each within its deadline; then
//! a look at what is left. Processes that are left are looked for once, after all trials.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use guestmnt_protocol::path::Printable;
use serde::Deserialize;

use super::listing::Listing;
use crate::corpus::trial::fingerprint;
use crate::corpus::{Family, Ground};
use crate::error::Error;

/// How long one command may take. Keys of BitLocker, and a filesystem of 130,000 entries, take
/// minutes where TCG imitates the processor and others use it as well.
const DEADLINE: Duration = Duration::from_secs(600);

/// What a table compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Device and type of each filesystem, where not all went well.
    pub filesystems: String,
    /// Exit status of `guestimg tar --all`.
    pub status: String,
    /// What its stream holds.
    pub contents: String,
    /// The first line of its messages, without the program's name.
    pub said: String,
}

/// How it went.
#[derive(Debug)]
pub struct Verdict {
    /// What was seen.
    pub observed: Observed,
    /// Every entry that was seen.
    pub listing: Listing,
    /// What must not be, in words.
    pub faults: Vec<String>,
}

/// Lists `image` and reads all its files.
///
/// # Errors
/// Where the trial itself cannot be made.
pub fn run(
    image: &Path,
    arguments: &[String],
    ground: &Ground,
    family: &Family,
) -> Result<Verdict, Error> {
    let before = fingerprint(image)?;
    let mut trial = Trial { image, arguments, ground, family, faults: Vec::new() };
    let failed = |error| Error::file("make a trial of", image)(error);
    let (listing, ended) = trial
        .guestimg(&["tar", "--all"], |mut stdout| Listing::read(&mut stdout))
        .map_err(failed)?;
    // Another VM; where all went well, the listing's directories name the devices.
    let filesystems = if ended.status == "0" && ended.said == "-" {
        None
    } else {
        let list = ["filesystems", "--extra", "--json"];
        let read = |stdout: &mut dyn Read| {
            let mut text = String::new();
            stdout.read_to_string(&mut text)?;
            Ok(filesystems(&text))
        };
        trial.guestimg(&list, read).map_err(failed)?.0
    };
    let mut faults = trial.faults;
    let left = ground.leftovers().map_err(failed)?;
    faults.extend(left.into_iter().map(|path| format!("{} is left", path.display())));
    if fingerprint(image)? != before {
        faults.push("the image was changed".to_owned());
    }
    let listing = listing.unwrap_or_default();
    let observed = Observed {
        filesystems: filesystems.unwrap_or_else(|| "-".to_owned()),
        status: ended.status,
        contents: listing.summary(),
        said: ended.said,
    };
    Ok(Verdict { observed, listing, faults })
}

struct Trial<'a> {
    image: &'a Path,
    arguments: &'a [String],
    ground: &'a Ground,
    family: &'a Family,
    faults: Vec<String>,
}

/// How a program ended.
struct Ended {
    status: String,
    said: String,
}

impl Trial<'_> {
    /// Runs `guestimg` with `words`, the image and its arguments, and reads its stdout by `read`.
    fn guestimg<T: Send>(
        &mut self,
        words: &[&str],
        read: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send,
    ) -> io::Result<(Option<T>, Ended)> {
        let log = self.ground.folder().join("said");
        let mut command: Command = self.ground.command("guestimg");
        let name = self.image.file_name().unwrap_or_default();
        command.args(words).args(self.arguments).arg("-a").arg(name);
        // Messages then name the image without the directory of this run.
        command.current_dir(self.image.parent().unwrap_or(Path::new("/")));
        command.stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = self.family.start(&mut command)?;
        let mut stdout = child.stdout.take().expect("piped above");
        let (result, status) = thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let result = read(&mut stdout);
                // The program is to end by itself, not by a pipe that nobody reads.
                io::copy(&mut stdout, &mut io::sink())?;
                result
            });
            let status = self.wait(&mut child, words[0]);
            (reader.join().expect("readers do not panic"), status)
        });
        let status = status?;
        let said = fs::read(&log)?;
        let said = first_message(&said);
        if let Err(error) = &result {
            self.faults.push(format!("{}: {error}", words[0]));
        }
        if said.contains("panicked at") {
            self.faults.push(format!("{}: {said}", words[0]));
        }
        Ok((result.ok(), Ended { status, said }))
    }

    fn wait(&mut self, child: &mut Child, what: &str) -> io::Result<String> {
        let Some(status) = self.family.wait(child, DEADLINE)? else {
            self.faults.push(format!("{what} did not end within {} s", DEADLINE.as_secs()));
            child.kill()?;
            self.family.wait(child, DEADLINE)?;
            return Ok("killed".to_owned());
        };
        if status.code().is_none() {
            self.faults.push(format!("{what}: {status}"));
        }
        Ok(status.code().map_or_else(|| "signal".to_owned(), |code| code.to_string()))
    }
}

/// The first message, without the program's name; `-` without any. That a template is made, as it is
/// after each build, has nothing to do with the image.
fn first_message(said: &[u8]) -> String {
    let lines = said.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let mut messages = lines.map(|line| line.strip_prefix(b"guestimg: ").unwrap_or(line));
    let first = messages.find(|message| {
        !message.starts_with(b"preparing the VM ") && !message.starts_with(b"kvm does not work ")
    });
    first.map_or_else(|| "-".to_owned(), |message| Printable(message).to_string())
}

/// A row of `guestimg filesystems --json`.
#[derive(Deserialize)]
struct Filesystem {
    name: String,
    vfs: Option<String>,
}

/// Device and type of each filesystem; `-` where none was printed.
fn filesystems(json: &str) -> String {
    let rows: Vec<Filesystem> = serde_json::from_str(json).unwrap_or_default();
    let shown = rows.iter().map(|row| {
        let name = row.name.strip_prefix("/dev/").unwrap_or(&row.name);
        Printable(format!("{name} {}", row.vfs.as_deref().unwrap_or("-")).as_bytes()).to_string()
    });
    let shown: Vec<String> = shown.collect();
    if shown.is_empty() { "-".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_is_about_the_image() {
        let said = b"guestimg: preparing the VM for quick starts\nguestimg: no\n  hint: yes\n";
        assert_eq!(first_message(said), "no");
        assert_eq!(first_message(b""), "-");
    }

    #[test]
    fn filesystems_are_named_by_device_and_type() {
        let json = r#"[{"name":"/dev/sda1","vfs":"ntfs","size":1},{"name":"btrfsvol:/dev/sda2/a","vfs":"btrfs"}]"#;
        assert_eq!(filesystems(json), "sda1 ntfs, btrfsvol:/dev/sda2/a btrfs");
        assert_eq!(filesystems(""), "-");
    }
}
