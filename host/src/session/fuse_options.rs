//! The options after `-o`: those of mount.fuse3(8) that make sense for a mount of ours.

use std::str::FromStr;

use fuser::SessionACL;

use crate::fs::view::{Permissions, Targets, View};

/// What the options of all `-o` say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FuseOptions {
    /// Owners and permissions.
    pub view: View,
    /// Who besides the user may use the mount.
    pub others: Others,
    /// Options that go to the kernel.
    pub kernel: Vec<String>,
}

/// Who besides the user may use the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Others {
    /// Nobody.
    #[default]
    Nobody,
    /// Root.
    Root,
    /// Everybody.
    All,
}

impl Others {
    /// fuser's word for it.
    #[must_use]
    pub fn acl(self) -> SessionACL {
        match self {
            Self::Nobody => SessionACL::Owner,
            Self::Root => SessionACL::RootAndOwner,
            Self::All => SessionACL::All,
        }
    }
}

/// The options that are known, for the error about one that is not.
const KNOWN: &str = "allow_other, allow_root, default_permissions, noexec, exec, ro, nosuid, nodev, \
    uid=, gid=, umask=, fmask=, dmask=, symlinks=inside|raw";

impl FromStr for FuseOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for option in text.split(',').filter(|option| !option.is_empty()) {
            options.add(option)?;
        }
        Ok(options)
    }
}

impl FuseOptions {
    /// The options of several `-o`, later ones winning.
    #[must_use]
    pub fn merged(all: &[Self]) -> Self {
        let mut merged = Self::default();
        for options in all {
            let view = options.view;
            merged.view.uid = view.uid.or(merged.view.uid);
            merged.view.gid = view.gid.or(merged.view.gid);
            merged.view.file_mask = view.file_mask.or(merged.view.file_mask);
            merged.view.directory_mask = view.directory_mask.or(merged.view.directory_mask);
            if view.targets != Targets::default() {
                merged.view.targets = view.targets;
            }
            if view.permissions != Permissions::default() {
                merged.view.permissions = view.permissions;
            }
            if options.others != Others::Nobody {
                merged.others = options.others;
            }
            merged.kernel.extend(options.kernel.iter().cloned());
        }
        merged
    }

    /// The options that fusermount3 gets.
    #[must_use]
    pub fn for_fusermount(&self) -> Vec<String> {
        let allow = (self.others != Others::Nobody).then(|| "allow_other".to_owned());
        self.kernel.iter().cloned().chain(allow).collect()
    }

    fn add(&mut self, option: &str) -> Result<(), String> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match (name, value) {
            ("uid", Some(value)) => self.view.uid = Some(number(option, value, 10)?),
            ("gid", Some(value)) => self.view.gid = Some(number(option, value, 10)?),
            ("umask", Some(value)) => {
                let mask = mask(option, value)?;
                self.view.file_mask = Some(mask);
                self.view.directory_mask = Some(mask);
            }
            ("fmask", Some(value)) => self.view.file_mask = Some(mask(option, value)?),
            ("dmask", Some(value)) => self.view.directory_mask = Some(mask(option, value)?),
            ("symlinks", Some("raw")) => self.view.targets = Targets::Raw,
            ("symlinks", Some("inside")) => self.view.targets = Targets::Inside,
            ("allow_other", None) => self.others = Others::All,
            ("allow_root", None) => self.others = Others::Root,
            ("default_permissions", None) => {
                self.view.permissions = Permissions::Enforced;
                self.kernel.push(name.to_owned());
            }
            ("noexec" | "exec", None) => self.kernel.push(name.to_owned()),
            // Always so.
            ("ro" | "nosuid" | "nodev", None) => {}
            ("rw" | "suid" | "dev", None) => {
                return Err(format!(
                    "-o {option}: a mount of an image is always nosuid and nodev, and ro unless \
                     --overlay FILE or --rw says where what is written goes"
                ));
            }
            _ => return Err(format!("-o {option} is not known; there are {KNOWN}")),
        }
        Ok(())
    }
}

fn number(option: &str, value: &str, radix: u32) -> Result<u32, String> {
    if value.starts_with('+') {
        return Err(format!("-o {option}: not a number"));
    }
    u32::from_str_radix(value, radix).map_err(|_| format!("-o {option}: not a number"))
}

fn mask(option: &str, value: &str) -> Result<u16, String> {
    u16::try_from(number(option, value, 8)?)
        .ok()
        .filter(|&mask| mask <= 0o777)
        .ok_or_else(|| format!("-o {option}: not an octal mask up to 777"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_masks_and_access_are_read() {
        let options: FuseOptions =
            "uid=1000,gid=5,umask=077,fmask=0137,allow_other".parse().unwrap();
        assert_eq!(options.view.uid, Some(1000));
        assert_eq!(options.view.gid, Some(5));
        assert_eq!(options.view.file_mask, Some(0o137));
        assert_eq!(options.view.directory_mask, Some(0o77));
        assert_eq!(options.view.targets, Targets::Inside);
        assert_eq!(options.for_fusermount(), ["allow_other"]);
    }

    #[test]
    fn options_that_cannot_be_kept_are_refused_by_name() {
        for option in [
            "rw",
            "suid",
            "uid=",
            "uid=-1",
            "uid=x",
            "umask=1000",
            "umask=8",
            "nonsense",
            "symlinks=stored",
            "fsname=x",
        ] {
            let error = option.parse::<FuseOptions>().unwrap_err();
            assert!(error.contains(&format!("-o {option}")), "{error}");
        }
    }

    #[test]
    fn a_later_option_wins() {
        let all = ["uid=1,umask=0,symlinks=raw", "uid=2"].map(|text| text.parse().unwrap());
        let merged = FuseOptions::merged(&all);
        assert_eq!((merged.view.uid, merged.view.file_mask), (Some(2), Some(0)));
        assert_eq!(merged.view.targets, Targets::Raw);
    }
}
