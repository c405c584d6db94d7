//! `guestimg status`: the live mounts of this user, since when they are there, what memory they take,
//! and what their QEMUs are confined by.

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use guestmnt_protocol::path::Printable;
use serde::Serialize;

use super::output::say;
use super::table::human;
use crate::cli::utc;
use crate::path_json;
use crate::session::mountpoint::{MountEntry, absolute, mounts};
use crate::session::record::Record;

/// Shows live mounts: images, since when, memory, accelerator, QEMU, and the layers around it
#[derive(Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,

    /// The folder of one mount; all of this user otherwise
    #[arg(value_name = "FOLDER")]
    mountpoint: Option<PathBuf>,
}

/// One mount.
#[derive(Serialize)]
struct Mount {
    #[serde(serialize_with = "path_json::serialize")]
    mountpoint: PathBuf,
    /// The serving process.
    server: u32,
    /// What the serving process says; `None` where it cannot be asked.
    session: Option<Record>,
    /// Bytes of memory of its own; `None` where it has no QEMU.
    memory: Option<u64>,
    /// What the kernel says of QEMU; `None` where it has ended.
    qemu: Option<Seen>,
}

/// What `/proc/PID/status` says of a process.
struct Status(String);

/// What `/proc` shows of QEMU, whatever was said when it started.
#[derive(Serialize)]
struct Seen {
    no_new_privileges: bool,
    seccomp_filters: u32,
    capabilities: bool,
    root: bool,
    /// The namespaces that are its own.
    namespaces: Vec<&'static str>,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Display>> {
    let wanted = arguments.mountpoint.as_deref().map(absolute).transpose().map_err(super::boxed)?;
    let me = nix::unistd::geteuid().as_raw();
    let entries = mounts().map_err(super::boxed)?;
    let found: Vec<Mount> = entries
        .iter()
        .filter(|entry| wanted.as_deref().is_none_or(|path| path == entry.mountpoint))
        .filter_map(|entry| looked_at(entry, me))
        .collect();
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&found).map_err(super::boxed)?);
    } else {
        found.iter().for_each(print);
    }
    if let (Some(path), true) = (wanted, found.is_empty()) {
        eprintln!("guestimg: {} is not a mount of yours by guestmnt", shown(&path));
        return Ok(ExitCode::from(3));
    }
    let well = found.iter().all(Mount::is_well);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn looked_at(entry: &MountEntry, me: u32) -> Option<Mount> {
    let server = entry.server()?;
    let owner = fs::metadata(format!("/proc/{server}")).map(|stat| stat.uid());
    if me != 0 && owner.is_ok_and(|owner| owner != me) {
        return None;
    }
    let session = Record::of(server);
    let status = session.as_ref().and_then(|record| Status::of_child(record.qemu, server));
    let memory = status.as_ref().and_then(|qemu| memory(&Status::of(server)?, qemu));
    let qemu = session
        .as_ref()
        .zip(status)
        .and_then(|(record, status)| Seen::of(record.qemu, server, &status));
    Some(Mount { mountpoint: entry.mountpoint.clone(), server, session, memory, qemu })
}

/// Bytes that a mount alone has in memory: what is in no file, of the server and of QEMU, and bulk
/// memory, which both have. Pages of images and template are the page cache's, all mounts' alike.
fn memory(server: &Status, qemu: &Status) -> Option<u64> {
    Some(server.bytes("RssAnon")? + qemu.bytes("RssAnon")? + qemu.bytes("RssShmem")?)
}

impl Status {
    /// Of the process `pid`, if it is still there.
    fn of(pid: u32) -> Option<Self> {
        fs::read_to_string(format!("/proc/{pid}/status")).ok().map(Self)
    }

    /// Of `pid`, if it is still a child of `parent`.
    fn of_child(pid: u32, parent: u32) -> Option<Self> {
        Self::of(pid).filter(|status| status.field("PPid") == Some(parent.to_string().as_str()))
    }

    /// The first word behind `name:`.
    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()
    }

    /// An amount of memory, which it gives in KiB.
    fn bytes(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse::<u64>().ok()?.checked_mul(1024)
    }
}

impl Mount {
    fn is_well(&self) -> bool {
        let complete = |record: &Record| record.confinement.missing().next().is_none();
        self.session.as_ref().is_some_and(complete) && self.qemu.is_some()
    }
}

impl Seen {
    /// What is seen of `qemu`, a child of `server` with this status.
    fn of(qemu: u32, server: u32, status: &Status) -> Option<Self> {
        let all = ["user", "mnt", "pid", "ipc", "uts", "net"];
        let namespace = |pid: u32, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
        let is_own = |name: &&'static str| {
            namespace(qemu, name).is_some_and(|its| namespace(server, name) != Some(its))
        };
        Some(Self {
            no_new_privileges: status.field("NoNewPrivs") == Some("1"),
            seccomp_filters: status
                .field("Seccomp_filters")
                .and_then(|n| n.parse().ok())
                .unwrap_or(0),
            capabilities: u64::from_str_radix(status.field("CapPrm")?, 16) != Ok(0),
            root: status.field("Uid") == Some("0"),
            namespaces: all.into_iter().filter(is_own).collect(),
        })
    }
}

fn print(mount: &Mount) {
    say!("{}", shown(&mount.mountpoint));
    say!("  served by    process {}", mount.server);
    let Some(record) = &mount.session else {
        say!("  nothing else can be learned: the process has ended, or may not be looked into");
        return;
    };
    for image in &record.images {
        say!("  image        {}", shown(image));
    }
    let since = i64::try_from(record.since).unwrap_or(i64::MAX);
    say!("  since        {} UTC", utc::date_and_time(since));
    if let Some(memory) = mount.memory {
        say!("  memory       {} of its own", human(memory));
    }
    say!("  accelerator  {}", record.accelerator);
    for state in &record.confinement.0 {
        let word = if state.missing.is_none() { "layer" } else { "MISSING" };
        say!("  {word:<12} {}", Printable(state.to_string().as_bytes()));
    }
    if record.revivals > 0 {
        say!("  revived      {} times, after its VM died", record.revivals);
    }
    match &mount.qemu {
        None => say!("  QEMU         has ended; reads fail until it is unmounted"),
        Some(seen) => {
            say!("  QEMU         process {}", record.qemu);
            say!("  seen         namespaces {}", seen.namespaces.join(", "));
            say!(
                "               no_new_privs {}, seccomp filters {}, capabilities {}, root {}",
                yes(seen.no_new_privileges),
                seen.seccomp_filters,
                yes(seen.capabilities),
                yes(seen.root)
            );
        }
    }
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn shown(path: &Path) -> Printable<'_> {
    Printable(path.as_os_str().as_encoded_bytes())
}
