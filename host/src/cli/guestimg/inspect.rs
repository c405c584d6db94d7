//! `guestimg inspect`: which operating systems are on the disks, and what they say of themselves.

use std::fmt::{self, Display};

use clap::{ArgMatches, Args};
use guestmnt_protocol::path::{GuestPath, Printable};
use guestmnt_protocol::system::{Family, System};
use serde_json::{Value, json};

use super::output;
use super::output::say;
use crate::cli::look::LookArguments;

/// Shows the operating systems on the disks: version, host name, users, what is mounted where
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) look: LookArguments,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the systems; none is no failure.
///
/// # Errors
/// Whatever stopped it, in words for people.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<(), Box<dyn Display>> {
    let launched = arguments.look.launch(matches)?;
    let systems = launched.guest.systems();
    drop(launched.guest);
    launched.vm.quit();
    let systems = systems.map_err(super::boxed)?;
    if arguments.json {
        let array: Vec<Value> = systems.iter().map(as_json).collect();
        say!("{:#}", Value::from(array));
    } else if systems.is_empty() {
        say!("no operating system found");
    } else {
        let texts: Vec<String> = systems.iter().map(|system| Shown(system).to_string()).collect();
        output::print(format_args!("{}", texts.join("\n")));
    }
    Ok(())
}

/// Text of the image, fit for a terminal.
fn plain(text: &str) -> String {
    Printable(text.as_bytes()).to_string()
}

/// The filesystems with their folders, the root first.
fn mounts(system: &System) -> Vec<(String, String)> {
    let root = (GuestPath::root().to_string(), system.root.to_string());
    let others = system.mounts.iter().map(|mount| (mount.at.to_string(), mount.device.to_string()));
    let mut mounts: Vec<_> = std::iter::once(root).chain(others).collect();
    mounts.sort();
    mounts
}

/// A system in some lines.
struct Shown<'a>(&'a System);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let system = self.0;
        let product = if system.product.is_empty() { "unnamed" } else { &system.product };
        writeln!(f, "{}: {}", system.root, plain(product))?;
        let named = [("version", &system.version), ("host name", &system.host_name)];
        for (name, value) in named.iter().filter(|(_, value)| !value.is_empty()) {
            writeln!(f, "  {name:<12} {}", plain(value))?;
        }
        let users: Vec<_> =
            system.users.iter().map(|user| (plain(&user.name), plain(&user.home))).collect();
        let drives: Vec<_> = system
            .drives
            .iter()
            .map(|drive| (drive.letter.to_string(), drive.device.to_string()))
            .collect();
        for (name, rows) in [("users", users), ("drives", drives), ("mounts", mounts(system))] {
            let width = rows.iter().map(|(first, _)| first.chars().count()).max().unwrap_or(0);
            for (n, (first, second)) in rows.iter().enumerate() {
                let name = if n == 0 { name } else { "" };
                writeln!(f, "  {name:<12} {first:<width$}  {second}")?;
            }
        }
        for (n, missing) in system.missing.iter().enumerate() {
            let name = if n == 0 { "missing" } else { "" };
            writeln!(f, "  {name:<12} {}", plain(missing))?;
        }
        Ok(())
    }
}

fn as_json(system: &System) -> Value {
    let family = match system.family {
        Family::Linux => "linux",
        Family::Windows => "windows",
    };
    let users = system.users.iter().map(|user| json!({ "name": user.name, "home": user.home }));
    let drives = system.drives.iter().map(
        |drive| json!({ "letter": drive.letter.to_string(), "device": drive.device.to_string() }),
    );
    let mounts =
        mounts(system).into_iter().map(|(at, device)| json!({ "at": at, "device": device }));
    json!({
        "root": system.root.to_string(),
        "family": family,
        "product": system.product,
        "version": system.version,
        "host_name": system.host_name,
        "users": users.collect::<Vec<_>>(),
        "drives": drives.collect::<Vec<_>>(),
        "mounts": mounts.collect::<Vec<_>>(),
        "missing": system.missing,
    })
}

#[cfg(test)]
mod tests {
    use guestmnt_protocol::system::User;

    use super::*;

    #[test]
    fn a_systems_own_words_do_not_steer_a_terminal() {
        let system = System {
            root: "/dev/sda1".parse().unwrap(),
            family: Family::Linux,
            product: "Linux\x1b[2J".to_owned(),
            version: "1".to_owned(),
            host_name: String::new(),
            users: vec![
                User { name: "root".to_owned(), home: "/root".to_owned() },
                User { name: "a\nb".to_owned(), home: "/home/\u{202e}".to_owned() },
            ],
            mounts: Vec::new(),
            drives: Vec::new(),
            missing: vec!["/x: UUID=\x07 is not there".to_owned()],
        };
        let expected = "\
/dev/sda1: Linux\\u{1b}[2J
  version      1
  users        root     /root
               a\\u{a}b  /home/\\u{202e}
  mounts       /  /dev/sda1
  missing      /x: UUID=\\u{7} is not there
";
        assert_eq!(Shown(&system).to_string(), expected);
    }
}
