//! The whole history of a disk: its image, those that it is over, and those that are over it,
//! wherever in the neighbourhood they are. Nothing of it has to be sound: what is broken is
//! shown with the reason.
//!
//! **Invariant:** reads headers, descriptors and tables only, and writes nothing.

mod member;
mod search;

use std::path::PathBuf;
use std::time::SystemTime;

pub use self::member::{Identity, Member, StoredFile};
use self::search::Search;
use super::error::{ImageError, Problem, path_bytes};
use super::{OpenOptions, chain};

/// Images that are looked at, whatever they have to do with each other.
pub const MAX_IMAGES: usize = 1024;

/// Folders that are looked into.
pub const MAX_FOLDERS: usize = 256;

/// Images and what is over what.
#[derive(Debug)]
pub struct History {
    /// By path. [`Member::parent`] counts in here, and never leads in a circle.
    pub members: Vec<Member>,
    /// Whether there was more in the neighbourhood than is looked at.
    pub cut_short: bool,
}

/// Finds the history of each of `paths`: a disk's image, or a folder with images in it and in
/// the folders below.
///
/// Looked into are the folders that relatives were found in, with those above, beside and directly
/// below them on the same filesystem. Up to [`MAX_IMAGES`] and [`MAX_FOLDERS`].
///
/// # Errors
/// [`ImageError`] for a path that is no image, or for a folder without one.
pub fn history(paths: &[PathBuf], options: &OpenOptions) -> Result<History, ImageError> {
    let allowed = chain::real_paths(&options.allow_paths)?;
    let mut search = Search::new(&allowed);
    for path in paths {
        search.start(path, options.format)?;
    }
    let (members, wanted, cut_short) = search.run();
    if wanted.is_empty() {
        let path = paths.first().cloned().unwrap_or_default();
        return Err(ImageError::new(&path, Problem::NoDisk));
    }
    Ok(related(members, &wanted, cut_short))
}

impl History {
    /// The images over the one with the number `index`, by path.
    #[must_use]
    pub fn children(&self, index: usize) -> Vec<usize> {
        self.over(Some(index))
    }

    /// The images that are over none: bases, and orphans.
    #[must_use]
    pub fn roots(&self) -> Vec<usize> {
        self.over(None)
    }

    fn over(&self, parent: Option<usize>) -> Vec<usize> {
        (0..self.members.len()).filter(|&n| self.members[n].parent == parent).collect()
    }

    /// Everything that is over `root`, itself first, each with its depth and before what is over it.
    #[must_use]
    pub fn tree(&self, root: usize) -> Vec<(usize, usize)> {
        let mut tree = Vec::new();
        let mut left = vec![(root, 0)];
        while let Some((index, depth)) = left.pop() {
            tree.push((index, depth));
            left.extend(self.children(index).into_iter().rev().map(|child| (child, depth + 1)));
        }
        tree
    }

    /// Of the images in the tree of `root` that no other is over, the one that was changed last:
    /// a sound one where there is one.
    ///
    /// # Panics
    /// Where `root` is no image's number.
    #[must_use]
    pub fn youngest(&self, root: usize) -> usize {
        let leaves = self.tree(root).into_iter().map(|(index, _)| index);
        let leaves = leaves.filter(|&index| self.children(index).is_empty());
        let age = |&index: &usize| {
            let member = &self.members[index];
            let changed = member.changed().unwrap_or(SystemTime::UNIX_EPOCH);
            (self.is_sound(index), changed, std::cmp::Reverse(index))
        };
        leaves.max_by_key(age).expect("a tree has a leaf")
    }

    /// Whether an image and all that it is over are as they must be.
    fn is_sound(&self, index: usize) -> bool {
        let mut at = Some(index);
        while let Some(index) = at {
            let member = &self.members[index];
            if member.problem.is_some() {
                return false;
            }
            at = member.parent;
        }
        true
    }

    /// Images with the id that an orphan's parent must have: where the parent may have been
    /// moved to.
    #[must_use]
    pub fn could_be_parents(&self, orphan: usize) -> Vec<usize> {
        let wanted = self.members[orphan].parent_identity;
        let lost = self.members[orphan].parent.is_none() && wanted.is_some();
        let fits = |&n: &usize| lost && n != orphan && self.members[n].identity == wanted;
        (0..self.members.len()).filter(fits).collect()
    }
}

/// Of what was found the wanted images, with all that they are related to.
fn related(mut members: Vec<Member>, wanted: &[usize], cut_short: bool) -> History {
    open_circles(&mut members);
    let roots: Vec<usize> = (0..members.len()).map(|index| root_of(&members, index)).collect();
    let mut kept: Vec<bool> = vec![false; members.len()];
    for &index in wanted {
        let mut mark = |root: usize| {
            (0..members.len()).filter(|&n| roots[n] == root).for_each(|n| kept[n] = true);
        };
        mark(roots[index]);
        // A parent that was moved tells more than its absence.
        let lost = members[roots[index]].parent_identity;
        let is_it = |n: &usize| lost.is_some() && members[*n].identity == lost;
        (0..members.len()).filter(is_it).for_each(|n| mark(roots[n]));
    }
    let mut order: Vec<usize> = (0..members.len()).filter(|&n| kept[n]).collect();
    order.sort_by(|&a, &b| path_bytes(&members[a].path).cmp(path_bytes(&members[b].path)));
    let place = |old: usize| order.iter().position(|&n| n == old);
    let parents: Vec<Option<usize>> =
        order.iter().map(|&n| members[n].parent.and_then(place)).collect();
    let mut old: Vec<Option<Member>> = members.into_iter().map(Some).collect();
    let members = order.iter().zip(parents).filter_map(|(&n, parent)| {
        let member = old[n].take()?;
        Some(Member { parent, ..member })
    });
    History { members: members.collect(), cut_short }
}

fn root_of(members: &[Member], index: usize) -> usize {
    let mut at = index;
    // Ends: the circles are open.
    while let Some(parent) = members[at].parent {
        at = parent;
    }
    at
}

/// Takes the parent from one image of each circle, and says so there.
fn open_circles(members: &mut [Member]) {
    for start in 0..members.len() {
        let mut at = start;
        for _ in 0..members.len() {
            let Some(parent) = members[at].parent else { break };
            if parent == start {
                let problem = Problem::Cycle(members[parent].path.clone());
                members[at].problem = Some(ImageError::new(&members[at].path, problem));
                members[at].parent = None;
                break;
            }
            at = parent;
        }
    }
}

#[cfg(test)]
mod tests;
