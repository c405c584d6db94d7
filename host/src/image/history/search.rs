//! Looks through folders for images, and for each image's parent.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::member::{Described, Member};
use super::{MAX_FOLDERS, MAX_IMAGES};
use crate::image::error::{ImageError, Problem};
use crate::image::file::{FileId, ImageFile};
use crate::image::folder::{entries, is_candidate};
use crate::image::machine::is_description;
use crate::image::parent::{Parent, Shape};
use crate::image::{Format, OpenOptions, chain, disks_of};

/// Entries of a folder that are looked at for folders among them.
const MAX_ENTRIES: usize = 1 << 16;

/// What was found so far.
pub(super) struct Search<'a> {
    allowed: &'a [PathBuf],
    found: Vec<Described>,
    by_id: HashMap<FileId, usize>,
    /// The images that were asked for.
    wanted: Vec<usize>,
    /// Folders all of whose images were asked for.
    whole: HashSet<PathBuf>,
    /// Folders to look into, each once.
    folders: VecDeque<PathBuf>,
    known_folders: HashSet<PathBuf>,
    cut_short: bool,
}

impl<'a> Search<'a> {
    /// One whose images may name files below `allowed`, which are real paths.
    pub fn new(allowed: &'a [PathBuf]) -> Self {
        Self {
            allowed,
            found: Vec::new(),
            by_id: HashMap::new(),
            wanted: Vec::new(),
            whole: HashSet::new(),
            folders: VecDeque::new(),
            known_folders: HashSet::new(),
            cut_short: false,
        }
    }

    /// Begins at an image, at those that a machine's description names, or at all of a folder.
    ///
    /// # Errors
    /// Where `path` cannot be begun at.
    pub fn start(&mut self, path: &Path, format: Option<Format>) -> Result<(), ImageError> {
        let failed = |problem| ImageError::new(path, problem);
        if path.is_dir() {
            let real = path.canonicalize().map_err(|error| failed(error.into()))?;
            self.whole_folder(&real);
            return Ok(());
        }
        if is_description(path) {
            let allow_paths = self.allowed.to_vec();
            let options = OpenOptions { format, allow_paths, ..OpenOptions::default() };
            for disk in disks_of(path, &options)? {
                self.start(&disk, format)?;
            }
            return Ok(());
        }
        let (file, format) = chain::find_leaf(path, format).map_err(failed)?;
        let is_part = file.is_part();
        let described = Described::of(file, format, self.allowed).map_err(failed)?;
        match described.member.problem {
            // An extent was named where a disk was meant.
            Some(error) if is_extent(&error) => Err(error),
            _ => {
                if !is_part {
                    self.neighbourhood(&described.member.path);
                }
                let index = self.note(described);
                self.wanted.push(index);
                Ok(())
            }
        }
    }

    /// Looks everywhere. Returns the images, each with its parent's number, the numbers of those
    /// that were asked for, and whether there was more than is looked at.
    pub fn run(mut self) -> (Vec<Member>, Vec<usize>, bool) {
        let mut next = 0;
        loop {
            while next < self.found.len() {
                self.find_parent(next);
                next += 1;
            }
            match self.folders.pop_front() {
                Some(folder) => self.look_into(&folder),
                None => break,
            }
        }
        let members = self.found.into_iter().map(|described| described.member).collect();
        (members, self.wanted, self.cut_short)
    }

    fn note(&mut self, described: Described) -> usize {
        let index = self.found.len();
        self.by_id.insert(described.member.id(), index);
        self.found.push(described);
        index
    }

    /// The images in `folder`.
    fn look_into(&mut self, folder: &Path) {
        // What cannot be read has nothing to show.
        let names = entries(folder).unwrap_or_default();
        let mut files: Vec<ImageFile> = Vec::new();
        for path in names.iter().filter(|path| is_candidate(path)) {
            files.extend(ImageFile::open(path).ok());
            if files.len() > MAX_IMAGES {
                self.cut_short = true;
                break;
            }
        }
        // Descriptors are small. Once they are known, so are the extents, which are not read then.
        files.sort_by_key(|file| file.len);
        let is_wanted = self.whole.contains(folder);
        for file in files {
            let id = file.id;
            let index = match self.by_id.get(&id) {
                Some(&index) => index,
                None if self.found.iter().any(|found| found.member.has_extent(id)) => continue,
                None => match self.describe(file) {
                    Some(index) => index,
                    None => continue,
                },
            };
            if is_wanted && !self.wanted.contains(&index) {
                self.wanted.push(index);
            }
        }
    }

    /// Notes the image in `file`, unless it is none, or there are too many.
    fn describe(&mut self, file: ImageFile) -> Option<usize> {
        if self.found.len() == MAX_IMAGES {
            self.cut_short = true;
            return None;
        }
        let format = Format::probe(&file).ok()?;
        let described = Described::of(file, format, self.allowed).ok()?;
        let is_part = described.member.problem.as_ref().is_some_and(is_extent);
        (!is_part).then(|| self.note(described))
    }

    /// Finds the image that the one with the number `index` is over, and says there if it is not
    /// as it must be.
    fn find_parent(&mut self, index: usize) {
        let Some((parent, shape)) = self.found[index].child.take() else { return };
        let path = self.found[index].member.path.clone();
        let found = self.parent_of(&path, &parent, shape);
        if found.0.is_some() {
            self.neighbourhood(&path);
        }
        let member = &mut self.found[index].member;
        member.parent = found.0;
        member.problem = found.1.map(|problem| ImageError::new(&path, problem));
    }

    fn parent_of(
        &mut self,
        path: &Path,
        parent: &Parent,
        child: Shape,
    ) -> (Option<usize>, Option<Problem>) {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let (file, format) = match parent.find(folder, self.allowed) {
            Ok(found) => found,
            // One that was changed is still the parent.
            Err(Problem::ParentId { expected, found, parent: at }) => {
                let problem = Problem::ParentId { expected, found, parent: at.clone() };
                let file = ImageFile::open(&at).ok();
                let format = file.as_ref().and_then(|file| Format::probe(file).ok());
                let index = file.zip(format).and_then(|(file, format)| self.add(file, format));
                return (index, Some(problem));
            }
            Err(problem) => return (None, Some(problem)),
        };
        let name = file.real.clone();
        let Some(index) = self.add(file, format) else {
            return (None, Some(Problem::TooDeep));
        };
        let found = &self.found[index];
        let problem = match (found.shape, &found.member.problem) {
            (Some(shape), _) => parent.check_fit(child, shape, name).err(),
            // What is wrong with the parent is said there.
            (None, _) => None,
        };
        (Some(index), problem)
    }

    /// The number of the image in `file`, which is a parent.
    fn add(&mut self, file: ImageFile, format: Format) -> Option<usize> {
        if let Some(&index) = self.by_id.get(&file.id) {
            return Some(index);
        }
        if self.found.len() == MAX_IMAGES {
            self.cut_short = true;
            return None;
        }
        self.neighbourhood(&file.real);
        let described = Described::of(file, format, self.allowed).ok()?;
        Some(self.note(described))
    }

    /// Where relatives of the image at `real` may be: the folder that it is in, those in there,
    /// the one above, and those beside it.
    fn neighbourhood(&mut self, real: &Path) {
        let Some(folder) = real.parent() else { return };
        let Ok(device) = fs::metadata(folder).map(|metadata| metadata.dev()) else { return };
        let around = [Some(folder), folder.parent()].into_iter().flatten();
        around.clone().all(|folder| self.look_later(folder));
        for around in around {
            if !folders_in(around, device).iter().all(|below| self.look_later(below)) {
                break;
            }
        }
    }

    /// All images in `folder` and below it are asked for.
    fn whole_folder(&mut self, folder: &Path) {
        let Ok(device) = fs::metadata(folder).map(|metadata| metadata.dev()) else { return };
        let mut left = VecDeque::from([folder.to_owned()]);
        while let Some(folder) = left.pop_front() {
            if !self.look_later(&folder) {
                break;
            }
            left.extend(folders_in(&folder, device));
            self.whole.insert(folder);
        }
    }

    /// Takes note of a folder to look into; false where there are too many.
    fn look_later(&mut self, folder: &Path) -> bool {
        if self.known_folders.contains(folder) {
            return true;
        }
        if self.known_folders.len() == MAX_FOLDERS {
            self.cut_short = true;
            return false;
        }
        self.known_folders.insert(folder.to_owned());
        self.folders.push_back(folder.to_owned());
        true
    }
}

fn is_extent(error: &ImageError) -> bool {
    matches!(error.problem(), Problem::IsExtent(_) | Problem::IsPiece(_))
}

/// The folders in `folder` that are not hidden and on the filesystem `device`, by name.
fn folders_in(folder: &Path, device: u64) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().take(MAX_ENTRIES).flatten();
    let mut folders: Vec<PathBuf> = entries
        .filter(|entry| !entry.file_name().as_bytes().starts_with(b"."))
        // Symbolic links are not followed: this is about real places.
        .filter(|entry| entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.dev() == device))
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    folders
}
