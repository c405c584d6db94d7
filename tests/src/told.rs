//! What guestmnt tells with `--stats` at the end of a mount.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use crate::program::{Workplace, text};

/// How many requests there were, of which kinds, and the bytes that came with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Of all kinds.
    pub total: u64,
    /// By their kinds; those that there were none of are missing.
    pub kinds: BTreeMap<String, u64>,
    /// Bytes.
    pub bytes: u64,
}

impl Tally {
    /// Of one kind.
    #[must_use]
    pub fn of(&self, kind: &str) -> u64 {
        self.kinds.get(kind).copied().unwrap_or(0)
    }

    /// Reads `3 requests (readdir 2, stat 1), 100 bytes`.
    fn parse(text: &str) -> Option<Self> {
        let (total, rest) = text.split_once(" requests (")?;
        let (kinds, bytes) = rest.split_once("), ")?;
        let kind = |text: &str| {
            let (name, count) = text.rsplit_once(' ')?;
            Some((name.to_owned(), count.parse().ok()?))
        };
        Some(Self {
            total: total.parse().ok()?,
            kinds: kinds
                .split(", ")
                .filter(|text| !text.is_empty())
                .map(kind)
                .collect::<Option<_>>()?,
            bytes: bytes.strip_suffix(" bytes")?.parse().ok()?,
        })
    }
}

/// What was told of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What the kernel asked.
    pub kernel: Tally,
    /// How its reads were answered.
    pub reads: Tally,
    /// What the kernel was given that it had not asked for.
    pub ahead: Tally,
    /// Where contents that the guest sent arrived.
    pub landed: Tally,
    /// What the guest was asked.
    pub guest: Tally,
}

impl Told {
    fn parse(said: &str) -> Option<Self> {
        let tally = |what: &str| {
            let is_its = |text: &&str| text.starts_with(what);
            let texts = said.lines().filter_map(|line| line.strip_prefix("guestmnt: "));
            let mut texts = texts.flat_map(|line| line.split("; "));
            Tally::parse(texts.find(is_its)?.strip_prefix(what)?)
        };
        Some(Self {
            kernel: tally("kernel: ")?,
            reads: tally("reads answered: ")?,
            ahead: tally("given ahead: ")?,
            landed: tally("contents landed: ")?,
            guest: tally("guest: ")?,
        })
    }
}

/// Mounts what `arguments` say on the folder `mnt` of `place`, lets `look` do something there,
/// unmounts, and returns what was told.
///
/// # Panics
/// Where it cannot be mounted, or where nothing is told.
pub fn told(place: &Workplace, arguments: &[&str], look: impl FnOnce(&Path)) -> Told {
    let mountpoint = place.path().join("mnt");
    std::fs::create_dir_all(&mountpoint).expect("a new folder");
    let arguments = [&["--stats", "--fd", "1"], arguments, &[text(&mountpoint)]].concat();
    let mut command = place.command("guestmnt", &arguments);
    let mut server =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut ready = server.stdout.take().expect("piped above");
    if ready.read_exact(&mut [0]).is_err() {
        panic!("guestmnt {arguments:?}: {:?}", server.wait_with_output());
    }
    look(&mountpoint);
    place.unmount(&mountpoint);
    let output = server.wait_with_output().expect("it was started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Told::parse(&said).unwrap_or_else(|| panic!("nothing is told in\n{said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read() {
        let said = "\
guestmnt: something else
guestmnt: kernel: 3 requests (read 2, lookup 1), 70 bytes; reads answered: 2 requests (guest 2), \
70 bytes; given ahead: 4 requests (spliced 4), 80 bytes; contents landed: 1 requests (slot 1), 90 bytes
guestmnt: guest: 0 requests (), 0 bytes
";
        let tally = |total, kinds: &[(&str, u64)], bytes| {
            let kinds = kinds.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
            Tally { total, kinds, bytes }
        };
        let expected = Told {
            kernel: tally(3, &[("read", 2), ("lookup", 1)], 70),
            reads: tally(2, &[("guest", 2)], 70),
            ahead: tally(4, &[("spliced", 4)], 80),
            landed: tally(1, &[("slot", 1)], 90),
            guest: Tally::default(),
        };
        assert_eq!(Told::parse(said), Some(expected));
        assert_eq!(Told::parse(""), None);
    }
}
