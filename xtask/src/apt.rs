//! Debian's packages, through an apt state of our own.
//!
//! On Debian 12 the kernel with ntfs3 and a QEMU of this decade are in the suite
//! bookworm-backports. The machine's own configuration rarely has it and is not ours to change,
//! so a sources file, package lists and a cache of our own stand in the target folder. Which
//! mirror to ask is read from the machine's configuration (`apt-get indextargets`); keys, proxies
//! and everything else apply as the machine has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::process::Tool;
use crate::setup::Privilege;

/// The release whose kernel and QEMU are too old for us, hence taken from its backports.
const NEEDS_BACKPORTS: &str = "bookworm";

/// What a person without apt does.
const NO_APT: &str = "on a machine without Debian's apt install the programs by hand and give \
                      build-appliance --kernel FILE --modules DIR";

/// An apt state of our own.
pub struct Apt {
    folder: PathBuf,
    /// Suite to prefer where it has the package.
    newer: Option<String>,
}

/// A package as `dpkg-deb` describes it.
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The downloaded file.
    pub file: PathBuf,
}

/// Packages to install.
#[derive(Debug, Default)]
pub struct Packages {
    /// Those whose version does not matter.
    pub ordinary: Vec<&'static str>,
    /// Those that are taken from the newer suite where there is one.
    pub newest: Vec<&'static str>,
}

impl Apt {
    /// Prepares a state in `folder`; no network is used yet. What runs apt as root needs another
    /// folder than what does not.
    ///
    /// # Errors
    /// [`Error::Unfit`] where apt has no Debian mirror configured.
    pub fn open(folder: PathBuf) -> Result<Self, Error> {
        let codename = codename()?;
        let suites = Suites::of_this_machine(&folder, &codename)?;
        let newer = (codename == NEEDS_BACKPORTS).then(|| format!("{codename}-backports"));
        let path = folder.join("sources/debian.list");
        fs::write(&path, suites.sources(newer.as_deref())).map_err(Error::file("write", &path))?;
        Ok(Self { folder, newer })
    }

    /// Prepares a state in `folder` for the source packages of `suite`, on the mirror that this
    /// machine is configured for; no network is used yet.
    ///
    /// # Errors
    /// As [`Apt::open`].
    pub fn open_source_packages(folder: PathBuf, suite: &str) -> Result<Self, Error> {
        let suites = Suites::of_this_machine(&folder, &codename()?)?;
        let path = folder.join("sources/debian.list");
        let line = format!("deb-src {}{} {suite} main\n", signed_by(), suites.base);
        fs::write(&path, line).map_err(Error::file("write", &path))?;
        Ok(Self { folder, newer: None })
    }

    /// Downloads the upstream archive of the source package `name` into `folder`.
    ///
    /// # Errors
    /// [`Error::Program`] with apt's own words.
    pub fn download_source(&self, name: &str, folder: &Path) -> Result<(), Error> {
        self.tool("apt-get")
            .args(["source", "--download-only", "--tar-only", name])
            .within(folder)
            .logged(&self.log())
    }

    /// Fetches the package lists.
    ///
    /// # Errors
    /// [`Error::Program`] with apt's own words.
    pub fn update(&self) -> Result<(), Error> {
        self.tool("apt-get").arg("update").logged(&self.log())
    }

    /// Fetches the package lists and installs `packages`.
    ///
    /// # Errors
    /// [`Error::Program`] with the tail of apt's log.
    pub fn install(&self, packages: &Packages, privilege: &Privilege) -> Result<(), Error> {
        for words in self.install_commands(packages) {
            privilege
                .tool("env")
                .arg("DEBIAN_FRONTEND=noninteractive")
                .args(words)
                .logged(&self.log())?;
        }
        Ok(())
    }

    /// The command lines of [`Apt::install`], without what makes them root's.
    ///
    /// The newest packages have a command of their own, since `PACKAGE/SUITE` does not choose the
    /// suite for what the package depends on and `-t SUITE` holds for a whole command.
    pub fn install_commands(&self, packages: &Packages) -> Vec<Vec<String>> {
        let command = |words: &[&str], packages: &[&str]| {
            let mut line = vec!["apt-get".to_owned()];
            line.extend(self.options());
            line.extend(words.iter().chain(packages).map(|&word| word.to_owned()));
            line
        };
        let install = ["install", "--yes", "--no-install-recommends"];
        let mut commands = vec![command(&["update"], &[])];
        if !packages.ordinary.is_empty() {
            commands.push(command(&install, &packages.ordinary));
        }
        if !packages.newest.is_empty() {
            let suite = self.newer.iter().flat_map(|suite| ["-t", suite]);
            let words: Vec<&str> = install.into_iter().chain(suite).collect();
            commands.push(command(&words, &packages.newest));
        }
        commands
    }

    /// The name of the newest kernel's package, to which `linux-image-amd64` points.
    ///
    /// # Errors
    /// [`Error::Unfit`] where the mirror has none.
    pub fn newest_kernel(&self) -> Result<String, Error> {
        let suite = self.newer.iter().flat_map(|suite| ["-t", suite]);
        let words = ["depends", "--important", "linux-image-amd64"];
        let depends = self.tool("apt-cache").args(suite).args(words).output()?;
        String::from_utf8_lossy(&depends)
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .map(str::to_owned)
            .ok_or_else(|| {
                Error::unfit(
                    "the mirror offers no package linux-image-amd64",
                    "give build-appliance --kernel FILE --modules DIR",
                )
            })
    }

    /// Downloads the package `name` into `folder`, without installing it.
    ///
    /// # Errors
    /// [`Error::Program`] with apt's own words.
    pub fn download(&self, name: &str, folder: &Path) -> Result<Package, Error> {
        self.tool("apt-get").args(["download", name]).within(folder).logged(&self.log())?;
        packages_in(folder)?
            .into_iter()
            .next()
            .ok_or_else(|| Error::unfit(format!("apt-get download {name} left no file"), NO_APT))
    }

    /// Downloads the packages `names` and the libraries that they depend on into `folder`, without
    /// installing anything. They come sorted by their files' names.
    ///
    /// # Errors
    /// [`Error::Program`] with apt's own words.
    pub fn download_with_libraries(
        &self,
        names: &[&str],
        folder: &Path,
    ) -> Result<Vec<Package>, Error> {
        let words = ["depends", "--recurse", "--important"];
        let depends = self.tool("apt-cache").args(words).args(names).output()?;
        let all = with_libraries(names, &String::from_utf8_lossy(&depends));
        self.tool("apt-get").arg("download").args(all).within(folder).logged(&self.log())?;
        packages_in(folder)
    }

    /// What apt printed, all of it.
    pub fn log(&self) -> PathBuf {
        self.folder.join("apt.log")
    }

    fn tool(&self, program: &str) -> Tool {
        Tool::new(program).args(self.options())
    }

    /// apt-get(8) options that replace sources, lists and cache, and nothing else.
    fn options(&self) -> Vec<String> {
        let set = |key: &str, name: &str| format!("-o{key}={}", self.folder.join(name).display());
        vec![
            set("Dir::Etc::SourceList", "no-such-file"),
            set("Dir::Etc::SourceParts", "sources"),
            set("Dir::State::Lists", "lists"),
            set("Dir::Cache", "cache"),
        ]
    }
}

/// The packages in a folder, as their own fields call them.
fn packages_in(folder: &Path) -> Result<Vec<Package>, Error> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(Error::file("list", folder))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    files.sort();
    let package = |file: PathBuf| {
        let field = |field: &str| -> Result<String, Error> {
            let value = Tool::new("dpkg-deb").arg("--field").arg(&file).arg(field).output()?;
            Ok(String::from_utf8_lossy(&value).trim().to_owned())
        };
        Ok(Package { name: field("Package")?, version: field("Version")?, file: file.clone() })
    };
    files.into_iter().map(package).collect()
}

/// `names` and those that they depend on which are libraries by their names, in what
/// `apt-cache depends --recurse` prints: a package's name, and below it, indented, what it depends
/// on. A virtual package stands in angle brackets.
fn with_libraries(names: &[&str], depends: &str) -> BTreeSet<String> {
    let mut needs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut package = "";
    for line in depends.lines() {
        if line.starts_with(' ') {
            let line = line.trim_start().trim_start_matches('|');
            let name = ["Depends: ", "PreDepends: "].iter().find_map(|key| line.strip_prefix(key));
            needs.entry(package).or_default().extend(name);
        } else {
            package = line;
        }
    }
    let mut all = BTreeSet::new();
    let mut todo = names.to_vec();
    while let Some(name) = todo.pop() {
        if all.insert(name.to_owned()) {
            let needed = needs.get(name).into_iter().flatten();
            todo.extend(needed.filter(|name| name.starts_with("lib") || **name == "zlib1g"));
        }
    }
    all
}

/// `VERSION_CODENAME` of this machine. Source: os-release(5).
fn codename() -> Result<String, Error> {
    let path = "/etc/os-release";
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|value| value.trim_matches('"').to_owned())
        .ok_or_else(|| Error::unfit(format!("{path} names no release"), NO_APT))
}

/// The lines that [`Suites::parse`] reads, from what `apt-get update --print-uris` prints:
/// `'URI/dists/SUITE/InRelease' …` for each suite. Of the origin nothing is known.
fn targets_of_uris(uris: &str) -> String {
    let suites = uris.lines().filter_map(|line| {
        let uri = line.strip_prefix('\'')?.split('\'').next()?;
        uri.strip_suffix("/InRelease")?.split_once("/dists/")
    });
    suites.map(|(uri, suite)| format!("$(ORIGIN) {suite} main {uri}/\n")).collect()
}

/// The option of a sources file that names Debian's keys, where they lie in a file of their own.
fn signed_by() -> String {
    let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    if keyring.exists() { format!("[signed-by={}] ", keyring.display()) } else { String::new() }
}

/// The machine's own Debian suites: URI and suite of each, component main.
struct Suites {
    base: String,
    all: Vec<(String, String)>,
}

impl Suites {
    /// Those that this machine is configured for. `folder` gets the folders of an apt state.
    fn of_this_machine(folder: &Path, codename: &str) -> Result<Self, Error> {
        for name in ["sources", "lists/partial", "cache/archives/partial"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        }
        let targets = Tool::new("apt-get")
            .args(["indextargets", "--format", "$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)"])
            .arg("Created-By: Packages")
            .output()
            .map_err(|error| match error {
                Error::Start { .. } => Error::unfit("there is no apt-get here", NO_APT),
                other => other,
            })?;
        let mut targets = String::from_utf8_lossy(&targets).into_owned();
        if targets.is_empty() {
            // A machine whose package lists were never fetched, or were removed to save room.
            let lists = format!("-oDir::State::Lists={}", folder.join("lists").display());
            let uris = Tool::new("apt-get").args(["update", "--print-uris", &lists]).output()?;
            targets = targets_of_uris(&String::from_utf8_lossy(&uris));
        }
        Self::parse(&targets, codename)
    }

    /// Reads lines of origin, suite, component and URI, as `apt-get indextargets` prints them.
    /// Before the first `apt-get update` the origin is unknown; a Debian archive is then told by
    /// its path.
    fn parse(targets: &str, codename: &str) -> Result<Self, Error> {
        let all: Vec<(String, String)> = targets
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                let [origin, suite, "main", uri] = fields[..] else { return None };
                let path = uri.trim_end_matches('/');
                let archive = path.ends_with("/debian") || path.ends_with("/debian-security");
                let debian = origin == "Debian" || origin.starts_with('$') && archive;
                (debian && suite.starts_with(codename)).then(|| (uri.into(), suite.into()))
            })
            .collect();
        let base = all
            .iter()
            .find(|(_, suite)| suite == codename)
            .map(|(uri, _)| uri.clone())
            .ok_or_else(|| {
                Error::unfit(format!("apt has no Debian mirror for {codename} configured"), NO_APT)
            })?;
        Ok(Self { base, all })
    }

    /// The sources file, sources.list(5), with the suite `newer` of the same mirror added.
    fn sources(&self, newer: Option<&str>) -> String {
        let options = signed_by();
        self.all
            .iter()
            .map(|(uri, suite)| (uri.as_str(), suite.as_str()))
            .filter(|(_, suite)| Some(*suite) != newer)
            .chain(newer.map(|suite| (self.base.as_str(), suite)))
            .map(|(uri, suite)| format!("deb {options}{uri} {suite} main\n"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_libraries_are_needed_and_nothing_else() {
        let depends = "\
lvm2
  PreDepends: init-system-helpers
  Depends: libaio1
 |Depends: default-libfoo
  Depends: <libvirtual>
libaio1
  Depends: libc6
libc6
  Depends: libgcc-s1
init-system-helpers
  Depends: libperl
";
        let all = with_libraries(&["lvm2", "busybox"], depends);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(all, ["busybox", "libaio1", "libc6", "libgcc-s1", "lvm2"]);
    }

    const BEFORE_UPDATE: &str = "\
$(ORIGIN) bookworm main http://mirror.example/debian/
$(ORIGIN) bookworm-security main http://mirror.example/debian-security/
$(ORIGIN) nodistro main http://node.example/
$(ORIGIN) bookworm main http://other.example/apt/
";

    #[test]
    fn the_mirror_comes_from_the_machines_own_configuration() {
        let suites = Suites::parse(BEFORE_UPDATE, "bookworm").unwrap();
        let sources = suites.sources(Some("bookworm-backports"));
        let rows: Vec<&str> =
            sources.lines().map(|line| line.split_once("http://").unwrap().1).collect();
        assert_eq!(
            rows,
            [
                "mirror.example/debian/ bookworm main",
                "mirror.example/debian-security/ bookworm-security main",
                "mirror.example/debian/ bookworm-backports main",
            ]
        );
    }

    #[test]
    fn without_package_lists_the_uris_tell_the_suites() {
        let uris = "\
'http://mirror.example/debian/dists/bookworm/InRelease' mirror_InRelease 0
'http://mirror.example/debian-security/dists/bookworm-security/InRelease' security_InRelease 0
'http://node.example/dists/nodistro/InRelease' node_InRelease 0
'http://other.example/apt/dists/bookworm/InRelease' other_InRelease 0
'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' packages 0
";
        assert_eq!(targets_of_uris(uris), BEFORE_UPDATE);
    }

    #[test]
    fn a_machine_that_has_backports_gets_them_once() {
        let targets = "Debian bookworm main http://m.example/debian/\n\
                       Debian bookworm-backports main http://m.example/debian/\n";
        let sources =
            Suites::parse(targets, "bookworm").unwrap().sources(Some("bookworm-backports"));
        assert_eq!(sources.matches("backports").count(), 1);
    }

    #[test]
    fn a_machine_without_a_debian_mirror_is_told_so() {
        assert!(Suites::parse("Ubuntu noble main http://u.example/ubuntu/\n", "noble").is_err());
    }
}
