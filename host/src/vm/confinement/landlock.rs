//! The Landlock ruleset: what of the root may be read or executed, which inherited files may be
//! opened once more, and that nothing else may be opened, made, or connected to.

use std::os::fd::{BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};

use super::Reopened;
use super::root::{Piece, Use};

/// The newest interface that is made use of; what an older kernel does not know is left out.
const NEWEST: ABI = ABI::V7;

/// The ruleset, or `None` where the kernel has no Landlock.
///
/// # Errors
/// [`RulesetError`] where the kernel refuses what it said that it knows.
pub fn ruleset(
    pieces: &[Piece],
    reopened: &[(BorrowedFd, Reopened)],
) -> Result<Option<OwnedFd>, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for Piece { path, purpose } in pieces {
        // What has gone meanwhile needs no rule.
        let Ok(opened) = PathFd::new(path) else { continue };
        let is_folder = path.is_dir();
        let access = rights(*purpose, is_folder);
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    for (file, how) in reopened {
        let access = match how {
            Reopened::ToRead => AccessFs::ReadFile.into(),
            Reopened::ToWrite => make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate}),
        };
        rules = rules.add_rule(PathBeneath::new(file, access))?;
    }
    Ok(rules.into())
}

fn rights(purpose: Use, is_folder: bool) -> BitFlags<AccessFs> {
    let list: BitFlags<AccessFs> =
        if is_folder { AccessFs::ReadDir.into() } else { BitFlags::EMPTY };
    list | match purpose {
        Use::Read => AccessFs::ReadFile.into(),
        Use::Execute => make_bitflags!(AccessFs::{ReadFile | Execute}),
        Use::Device => make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev}),
    }
}
