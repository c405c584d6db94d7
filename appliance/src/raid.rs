//! Linux' software RAID: which arrays the members on the disks belong to, what they are called, and
//! how mdadm makes block devices of them.
//!
//! An array is called as its superblock says, `/dev/md0` for the name `0`, whatever host it is
//! from. One whose name cannot stand in a path, or that has none, gets a number from 127 downwards,
//! as mdadm does it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use guestmnt_protocol::message::Failure;
use guestmnt_protocol::volume::PlainName;

use crate::failure::explained;
use crate::md_linear::{self, NoTable};
use crate::modules::Modules;
use crate::programs::Programs;

/// The number that the kernel's node of the first array without one has.
const LAST: u32 = 127;

/// A member as libblkid shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its node.
    pub node: PathBuf,
    /// The array's UUID.
    pub uuid: String,
    /// `HOST:NAME` or `NAME`; empty in old superblocks.
    pub label: String,
}

/// An array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// Its name for people.
    pub name: PlainName,
    /// The number of its node, `/dev/mdN`.
    pub number: u32,
    /// Its UUID.
    pub uuid: String,
    /// Nodes of the members that are there.
    pub members: Vec<PathBuf>,
}

impl Array {
    /// The node that it has once it is assembled.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        format!("/dev/md{}", self.number).into()
    }

    /// Whether it is the array that is called so: by its name or by its node's number.
    #[must_use]
    pub fn is_called(&self, name: &PlainName) -> bool {
        self.name == *name || name.as_str() == self.number.to_string()
    }

    /// Assembles it, degraded as well, and returns its node. Nothing is written to it before
    /// something writes to the filesystem on it: a journal that is replayed, for one.
    ///
    /// # Errors
    /// `EIO` with what mdadm said.
    pub fn assemble(&self, programs: &Programs, modules: &Modules) -> Result<PathBuf, Failure> {
        let node = self.node();
        if node.exists() {
            return Ok(node);
        }
        match md_linear::table(&self.members) {
            Ok(table) => return self.map(&table, programs, modules),
            Err(NoTable::NotLinear) => {}
            Err(NoTable::Missing(missing, all)) => {
                let detail = format!(
                    "it is linear and lacks {missing} of its {all} members\nhint: give the image of \
                     the missing member with another -a"
                );
                return Err(explained(Errno::EIO, detail));
            }
            Err(NoTable::Damaged) => {
                return Err(explained(Errno::EIO, "its superblocks contradict each other"));
            }
        }
        start_read_only();
        let node_name = node.to_string_lossy();
        let members: Vec<_> = self.members.iter().map(|node| node.to_string_lossy()).collect();
        let mut arguments = vec!["--assemble", "--run", node_name.as_ref()];
        arguments.extend(members.iter().map(AsRef::as_ref));
        match programs.run(modules, "mdadm", &arguments, &[])? {
            Ok(_) if node.exists() => Ok(node),
            Ok(_) => Err(explained(Errno::ENODEV, "mdadm assembled it, but there is no node")),
            Err(failed) => Err(failed.advised(
                Errno::EIO,
                "mdadm cannot assemble it",
                "where a member is missing, give its image with another -a",
            )),
        }
    }

    /// Makes a device of device-mapper of it, by `table`.
    fn map(&self, table: &str, programs: &Programs, modules: &Modules) -> Result<PathBuf, Failure> {
        let name = format!("md{}", self.number);
        let node = Path::new("/dev/mapper").join(&name);
        if node.exists() {
            return Ok(node);
        }
        let arguments = ["create", &name, "--noudevrules", "--noudevsync"];
        match programs.run(modules, "dmsetup", &arguments, table.as_bytes())? {
            Ok(_) => Ok(node),
            Err(failed) => Err(failed.explained(Errno::EIO, "dmsetup cannot map it")),
        }
    }
}

/// How many members the array with the node `node` lacks, of how many; `None` where it has all.
#[must_use]
pub fn missing_members(node: &Path) -> Option<(u32, u32)> {
    let folder = Path::new("/sys/block").join(node.file_name()?).join("md");
    let number = |name| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u32>().ok();
    let missing = number("degraded").filter(|missing| *missing > 0)?;
    Some((missing, number("raid_disks")?))
}

/// Has the kernel leave arrays alone until something is written to them, see `start_ro` in
/// Documentation/admin-guide/md.rst: neither marks them as used nor brings members in step.
fn start_read_only() {
    // Without it an array is marked in the overlay, which harms nothing.
    let _ = fs::write("/sys/module/md_mod/parameters/start_ro", "1");
}

/// The arrays that `members` belong to, in the order of their first members.
#[must_use]
pub fn arrays(members: &[Member]) -> Vec<Array> {
    let mut arrays: Vec<(Array, &str)> = Vec::new();
    for member in members {
        match arrays.iter_mut().find(|(array, _)| array.uuid == member.uuid) {
            Some((array, _)) => array.members.push(member.node.clone()),
            None => {
                let own = member.label.rsplit(':').next().unwrap_or_default();
                let name = own.parse().unwrap_or_else(|_| PlainName::from(0));
                let uuid = member.uuid.clone();
                let members = vec![member.node.clone()];
                arrays.push((Array { name, number: 0, uuid, members }, own));
            }
        }
    }
    number(arrays)
}

/// Gives each array its number: the name where it is one that no other array has, else one from
/// above.
fn number(arrays: Vec<(Array, &str)>) -> Vec<Array> {
    let wished = |own: &str| own.parse::<u32>().ok().filter(|number| number.to_string() == own);
    let mut taken: Vec<u32> = Vec::new();
    let wishes: Vec<Option<u32>> = arrays
        .iter()
        .map(|(_, own)| {
            let number = wished(own).filter(|number| *number < 1 << 16 && !taken.contains(number));
            taken.extend(number);
            number
        })
        .collect();
    let mut free = (0..=LAST).rev().filter(|number| !taken.contains(number));
    let mut names: Vec<PlainName> = Vec::new();
    arrays
        .into_iter()
        .zip(wishes)
        .map(|((mut array, own), wish)| {
            array.number = wish.or_else(|| free.next()).unwrap_or(u32::MAX >> 12);
            // A name that is missing, odd, or that of another array.
            if own.parse::<PlainName>().is_err() || names.contains(&array.name) {
                array.name = PlainName::from(array.number);
            }
            names.push(array.name.clone());
            array
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: &str, uuid: &str, label: &str) -> Member {
        Member { node: node.into(), uuid: uuid.to_owned(), label: label.to_owned() }
    }

    #[test]
    fn members_are_gathered_by_the_arrays_uuid() {
        let members = [
            member("/dev/vda", "u", "host:0"),
            member("/dev/vdb", "v", "1"),
            member("/dev/vdc", "u", "host:0"),
        ];
        let arrays = arrays(&members);
        assert_eq!(arrays.len(), 2);
        assert_eq!(arrays[0].members, [PathBuf::from("/dev/vda"), PathBuf::from("/dev/vdc")]);
        assert_eq!(arrays[1].node(), PathBuf::from("/dev/md1"));
    }

    #[test]
    fn every_array_has_a_name_and_a_number_of_its_own() {
        let labels = ["host:0", "other:0", "host:data", "", "host:a/b", "03", "host:data"];
        let members: Vec<Member> = labels
            .iter()
            .enumerate()
            .map(|(n, label)| member("/dev/x", &n.to_string(), label))
            .collect();
        let arrays = arrays(&members);
        let named: Vec<(&str, u32)> =
            arrays.iter().map(|array| (array.name.as_str(), array.number)).collect();
        let expected = [
            ("0", 0),
            ("127", 127),
            ("data", 126),
            ("125", 125),
            ("124", 124),
            ("03", 123),
            ("122", 122),
        ];
        assert_eq!(named, expected);
        assert!(arrays[2].is_called(&"data".parse().unwrap()));
        assert!(arrays[2].is_called(&"126".parse().unwrap()));
        assert!(!arrays[2].is_called(&"0".parse().unwrap()));
    }
}
