//! A folder for images that name what they must not, and what they name.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::program::{Workplace, text};
use crate::showing::assert_refused;

/// A folder `vm` for the image, and one outside of it with a secret that is watched.
pub struct Trap {
    /// Where both are.
    pub place: Workplace,
    /// The image's folder.
    pub vm: PathBuf,
    /// A file outside.
    pub secret: PathBuf,
    reads: Inotify,
}

impl Trap {
    /// A new one.
    ///
    /// # Panics
    /// Where there can be none.
    #[must_use]
    pub fn new() -> Self {
        let place = Workplace::new();
        let _ = place.folder("mnt");
        let (vm, outside) = (place.folder("vm"), place.folder("outside"));
        let secret = outside.join("secret");
        fs::write(&secret, [b's'; 4096]).expect("the place is ours");
        let reads = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify is to be had");
        reads.add_watch(&secret, AddWatchFlags::IN_ACCESS).expect("it can be watched");
        Self { place, vm, secret, reads }
    }

    /// Writes a file into the image's folder.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.vm.join(name), bytes).expect("the place is ours");
    }

    /// Runs guestmnt on the image `name`, which it has to refuse with each of `words`.
    ///
    /// # Panics
    /// As [`assert_refused`].
    pub fn refused(&self, name: &str, words: &[&str]) {
        assert_refused(&self.place, &["-a", &format!("vm/{name}")], words);
    }

    /// Checks that nobody has read the secret so far, and that nothing is left behind.
    ///
    /// # Panics
    /// Where somebody has, or something is.
    pub fn assert_secret_is_kept(self) {
        assert_eq!(self.reads.read_events().unwrap_err(), Errno::EAGAIN, "the secret was read");
        fs::read(&self.secret).expect("it is there");
        let seen = self.reads.read_events().expect("reading is seen");
        assert_eq!(seen.len(), 1, "reading would have been seen");
        self.place.assert_clean(&["mnt", "vm", "outside"]);
    }

    /// What leads to the secret or to no file at all, by its name, and what is said of it. Called
    /// once.
    ///
    /// # Panics
    /// Where the links cannot be made.
    #[must_use]
    pub fn names(&self) -> Vec<(String, &'static str)> {
        const OUTSIDE: &str = "outside of the image's folder";
        const PROTOCOL: &str = "a protocol and not a file";
        let at = |name: &str| self.vm.join(name);
        let made = fs::create_dir(at(".hidden"))
            .and_then(|()| fs::hard_link(&self.secret, at(".hidden/secret")))
            .and_then(|()| fs::hard_link(&self.secret, at("hard")))
            .and_then(|()| symlink(&self.secret, at("link")))
            .and_then(|()| symlink(self.secret.parent().expect("a folder"), at("links")))
            .and_then(|()| Ok(mkfifo(&at("fifo"), Mode::S_IRWXU)?))
            .and_then(|()| UnixListener::bind(at("socket")).map(drop));
        made.expect("the place is ours");
        let table = [
            (text(&self.secret), OUTSIDE),
            ("../outside/secret", OUTSIDE),
            ("./../vm/../outside/secret", OUTSIDE),
            ("link", OUTSIDE),
            ("links/secret", OUTSIDE),
            (".hidden/secret", OUTSIDE),
            ("hard", "(hard links)"),
            ("fifo", "it is a FIFO"),
            ("socket", "it is a socket"),
            ("links", "it is a folder"),
            ("/dev/zero", "it is a device"),
            ("/proc/self/mem", OUTSIDE),
            ("nbd:localhost:10809", PROTOCOL),
            ("nbd+unix:///?socket=/s", PROTOCOL),
            ("json:{'driver':'null-co'}", PROTOCOL),
            ("ssh://host/file", PROTOCOL),
            ("fat:rw:/etc", PROTOCOL),
            ("/dev/fdset/1", "No such file"),
        ];
        table.into_iter().map(|(name, words)| (name.to_owned(), words)).collect()
    }
}

impl Default for Trap {
    fn default() -> Self {
        Self::new()
    }
}
