//! Unpacks a tar stream into a folder of an image, with everything that it says of its files:
//! owners as numbers, permissions with their set-id bits, times, extended attributes, devices.
//!
//! Names are checked as every path for a guest is: one that holds `..` is left out, one that begins
//! with a slash is meant from the folder on.

use std::io::Read;

use guestmnt_protocol::change::{FileAt, Owner};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::path::GuestPath;
use nix::errno::Errno;
use nix::sys::stat::makedev;

use super::tar_reader::{Entry, Kind, TarReader};
use super::writer::{Metadata, Target, Writer};
use super::{Complain, Inserted, Progress, Trouble, below};

/// Unpacks `stream` into `folder`. `sum` counts meanwhile.
///
/// # Errors
/// What would meet all other files as well: a stream that cannot be read, a full disk. Everything
/// else is told and left out.
pub fn unpack(
    stream: impl Read,
    folder: &GuestPath,
    writer: &mut Writer,
    sum: &mut Inserted,
    progress: Progress,
    complain: Complain,
) -> Result<(), Trouble> {
    let mut stream = TarReader::new(stream);
    // What is put into a folder changes its time, so that these come last.
    let mut folders: Vec<(GuestPath, Metadata)> = Vec::new();
    while let Some(entry) = stream.next_entry()? {
        let metadata = metadata_of(&entry);
        let done = place(folder, &entry.path).and_then(|at| {
            if entry.kind == Kind::Folder {
                make(writer, &at, |writer| writer.folder(&at))?;
                // The user's own folder stays as it is.
                if at != *folder {
                    folders.push((at, metadata));
                }
                return Ok(());
            }
            make_one(writer, folder, &entry, &at, &metadata, &mut stream, progress)
        });
        if let Err(trouble) = &done
            && (trouble.is_final() || matches!(trouble, Trouble::Source(_)))
        {
            complain(&entry.path, trouble);
            return done;
        }
        sum.count(&entry.path, done, complain)?;
    }
    for (at, metadata) in folders.into_iter().rev() {
        if let Err(trouble) = writer.finish(&FileAt::Path(at.clone()), &metadata) {
            complain(&[b"/", at.as_bytes()].concat(), &trouble);
            sum.troubles += 1;
        }
    }
    Ok(())
}

fn make_one<R: Read>(
    writer: &mut Writer,
    folder: &GuestPath,
    entry: &Entry,
    at: &GuestPath,
    metadata: &Metadata,
    stream: &mut TarReader<R>,
    progress: Progress,
) -> Result<(), Trouble> {
    let special =
        |kind| Target::Special(kind, makedev(entry.device.0.into(), entry.device.1.into()));
    let target = match entry.kind {
        Kind::File => {
            let mut buffer = vec![0; MAX_PAYLOAD];
            return make(writer, at, |writer| {
                writer.file(at, metadata, |file| {
                    let mut end = 0;
                    while let Some((offset, count)) = stream.read(&mut buffer)? {
                        file.write(offset, &buffer[..count])?;
                        end = offset + count as u64;
                        progress(count as u64);
                    }
                    if end < entry.size { file.set_size(entry.size) } else { Ok(()) }
                })
            });
        }
        Kind::HardLink => {
            let first = place(folder, &entry.link)?;
            return make(writer, at, |writer| writer.hard_link(&first, at));
        }
        Kind::Other => {
            return Err(Trouble::LeftOut(
                "in a form that is not read, such as sparse files of older versions",
            ));
        }
        Kind::Symlink => Target::Link(entry.link.clone()),
        Kind::Fifo => Target::Special(libc::S_IFIFO, 0),
        Kind::Character => special(libc::S_IFCHR),
        Kind::Block => special(libc::S_IFBLK),
        Kind::Folder => return Ok(()),
    };
    make(writer, at, |writer| writer.other(at, metadata, &target))
}

/// Makes something, with the folders that it is in where the stream does not have them.
fn make(
    writer: &mut Writer,
    at: &GuestPath,
    mut make: impl FnMut(&mut Writer) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    match make(writer) {
        Err(Trouble::Guest(Errno::ENOENT)) => {
            writer.folders_of(at)?;
            make(writer)
        }
        made => made,
    }
}

/// Where in the image an entry goes.
fn place(folder: &GuestPath, name: &[u8]) -> Result<GuestPath, Trouble> {
    let name = GuestPath::parse(name)
        .map_err(|_| Trouble::LeftOut("called in a way that may lead out of the folder"))?;
    below(folder, &name)
}

fn metadata_of(entry: &Entry) -> Metadata {
    let (uid, gid) = entry.owner;
    Metadata {
        mode: entry.mode,
        owner: Owner { uid: Some(uid), gid: Some(gid) },
        accessed: entry.modified,
        modified: entry.modified,
        xattrs: entry.xattrs.clone(),
    }
}
