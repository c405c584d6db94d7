//! XFS whose log or realtime section is on another device: the user's options name that as it is called
//! here, the driver wants its node.

use guestmnt_protocol::message::Failure;
use guestmnt_protocol::volume::VolumeName;

use nix::errno::Errno;

use crate::assembly::Assembly;
use crate::failure::explained;
use crate::filesystems::join_options;

/// The options that name a device.
const DEVICES: [&str; 2] = ["logdev", "rtdev"];

/// `options` with nodes for the names of devices.
///
/// # Errors
/// `EINVAL` for what is no name of a device; else as [`Assembly::node`].
pub fn with_nodes(options: &str, assembly: &Assembly) -> Result<String, Failure> {
    let node = |name: &VolumeName| {
        let node = assembly.node(name)?;
        Ok(node.to_string_lossy().into_owned())
    };
    replaced(options, node)
}

fn replaced(
    options: &str,
    node: impl Fn(&VolumeName) -> Result<String, Failure>,
) -> Result<String, Failure> {
    let one = |option: &str| match option.split_once('=') {
        Some((key, name)) if DEVICES.contains(&key) => {
            let volume = name
                .parse::<VolumeName>()
                .map_err(|error| explained(Errno::EINVAL, format!("{key}: {name} is {error}")))?;
            let node = node(&volume).map_err(|failure| {
                let detail = format!("{key}={name}: {}", failure.detail);
                Failure::with_detail(failure.errno, detail)
            })?;
            Ok(format!("{key}={node}"))
        }
        _ => Ok(option.to_owned()),
    };
    let all: Vec<String> = options.split(',').map(one).collect::<Result<_, Failure>>()?;
    Ok(join_options(&all.iter().map(String::as_str).collect::<Vec<_>>()))
}

/// What can be done where the driver said `log`, if it missed a device.
#[must_use]
pub fn advice(log: &str) -> Option<&'static str> {
    if log.contains("having an external log") {
        Some(
            "hint: its log is on another device; give that with -a too, and name it: \
              -m /dev/sda:/:logdev=/dev/sdb",
        )
    } else if log.contains("rtdev") || log.contains("realtime") {
        Some(
            "hint: its realtime section is on another device; give that with -a too, and name it: \
              -m /dev/sda:/:rtdev=/dev/sdb",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_become_nodes() {
        let node = |name: &VolumeName| Ok(format!("/node/of{name}"));
        let table = [
            ("logdev=/dev/sdb,ro", "logdev=/node/of/dev/sdb,ro"),
            ("nouuid,rtdev=/dev/vg/rt", "nouuid,rtdev=/node/of/dev/vg/rt"),
            ("", ""),
        ];
        for (options, expected) in table {
            assert_eq!(replaced(options, node).unwrap(), expected);
        }
        assert!(replaced("logdev=../x", node).is_err());
    }
}
