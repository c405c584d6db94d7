//! What it is measured on; without it figures mean nothing.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::places::Places;
use crate::process::Tool;

/// A machine, and what is measured on it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Processors that may be used.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Release of its kernel.
    pub kernel: String,
    /// Runnable processes in the minute before the start: more than none is noise.
    pub load: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Version of guestmount, where there is one.
    pub guestmount: Option<String>,
    /// What runs our VMs, as their command line has it once the first is up; guestmount is told to
    /// take the same.
    pub accelerator: String,
    /// The commit that is measured, and whether files have changed since.
    pub commit: String,
    /// Seconds since the epoch.
    pub time: u64,
}

impl Machine {
    /// This one, now.
    #[must_use]
    pub fn here(places: &Places) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let memory = field(&text("/proc/meminfo"), "MemTotal");
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let commit = Tool::new("git")
            .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
            .within(places.root());
        Self {
            cpu: field(&text("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib / 1024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: text("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            qemu: first_line(Tool::new("qemu-system-x86_64").arg("--version"))
                .unwrap_or_else(|| "unknown".to_owned()),
            guestmount: first_line(Tool::new("guestmount").arg("--version")),
            accelerator: "unknown".to_owned(),
            commit: first_line(commit).unwrap_or_else(|| "unknown".to_owned()),
            time,
        }
    }
}

/// The value behind the first `name :` of a file of /proc.
fn field(text: &str, name: &str) -> String {
    let mut rows = text.lines().filter_map(|line| line.split_once(':'));
    let value = rows.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim());
    value.unwrap_or("unknown").to_owned()
}

fn first_line(tool: Tool) -> Option<String> {
    let output = tool.output().ok()?;
    Some(String::from_utf8_lossy(&output).lines().next()?.to_owned())
}
