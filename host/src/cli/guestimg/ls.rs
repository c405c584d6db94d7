//! `guestimg ls`: what is in folders of an image, as `ls -l` shows it.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use guestmnt_protocol::attr::{Attr, Time};
use guestmnt_protocol::path::{GuestPath, LinkTarget, Printable};
use nix::errno::Errno;
use serde_json::{Value, json};

use super::output::Output;
use super::table;
use crate::cli::look::FilesArguments;
use crate::cli::utc;
use crate::files::{Files, Follow, Found};

/// Lists files and folders of an image, with times in UTC
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) files: FilesArguments,

    /// Folders in folders as well
    #[arg(short = 'R', long)]
    recursive: bool,

    /// Sizes as people read them
    #[arg(short = 'h', long, conflicts_with = "json")]
    human_readable: bool,

    /// An array of objects, sizes in bytes
    #[arg(long)]
    json: bool,

    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,

    /// Files and folders in the image; a link is shown, one with a slash behind it is followed
    #[arg(value_name = "PATH", default_value = "/")]
    paths: Vec<std::ffi::OsString>,
}

/// A file as it is listed.
struct Line {
    /// From the root of what is mounted.
    path: GuestPath,
    /// What it is called in the list.
    name: Vec<u8>,
    /// `None` where the guest cannot tell.
    attr: Option<Attr>,
    target: Option<LinkTarget>,
}

/// Lists what the arguments ask for. What cannot be listed is told.
///
/// # Errors
/// Where there is no image to be read, or no output to be written to.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<ExitCode, Box<dyn Display>> {
    let opened = arguments.files.open(matches)?;
    let mut list = Listing { arguments, out: Output::lock(), begun: false, well: true };
    let done = list.all(&opened.files);
    let well = list.well;
    drop(list);
    let whole = opened.close();
    done.map_err(super::boxed)?;
    Ok(if well && whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Listing<'a> {
    arguments: &'a Arguments,
    out: Output,
    /// Whether something was printed.
    begun: bool,
    /// Whether all could be listed.
    well: bool,
}

impl Listing<'_> {
    fn all(&mut self, files: &Files) -> io::Result<()> {
        let mut lines = Vec::new();
        let mut folders = VecDeque::new();
        for path in &self.arguments.paths {
            let name = path.as_encoded_bytes();
            match files.find(name, Follow::NotLast) {
                Ok(found) if is_folder(Some(&found.attr)) => folders.push_back(found.path),
                Ok(Found { path, attr, target }) => {
                    lines.push(Line { path, name: name.to_vec(), attr: Some(attr), target });
                }
                Err(errno) => self.tell(name, errno),
            }
        }
        let titled = self.arguments.recursive || folders.len() + lines.len() > 1;
        if !lines.is_empty() {
            self.print(None, &lines)?;
        }
        while let Some(folder) = folders.pop_front() {
            let entries = match files.entries(&folder) {
                Ok(entries) => entries,
                Err(errno) => {
                    self.tell(folder.to_string().as_bytes(), errno);
                    continue;
                }
            };
            if let Some(errno) = entries.error {
                self.tell(folder.to_string().as_bytes(), errno);
            }
            let lines = entries.all.into_iter().filter_map(|entry| {
                let path = folder.join(&entry.name).ok()?;
                let name = entry.name.as_bytes().to_vec();
                Some(Line { path, name, attr: entry.attr, target: entry.target })
            });
            let lines: Vec<Line> = lines.collect();
            self.print(titled.then_some(&folder), &lines)?;
            if self.arguments.recursive {
                let below = lines.into_iter().filter(|line| is_folder(line.attr.as_ref()));
                below.rev().for_each(|line| folders.push_front(line.path));
            }
        }
        if self.arguments.json {
            let end = if self.begun { "\n]" } else { "[]" };
            writeln!(self.out, "{end}")?;
        }
        self.out.flush()
    }

    fn tell(&mut self, path: &[u8], errno: Errno) {
        eprintln!("guestimg: {}: {}", Printable(path), errno.desc());
        self.well = false;
    }

    fn print(&mut self, folder: Option<&GuestPath>, lines: &[Line]) -> io::Result<()> {
        if self.arguments.json {
            for line in lines {
                let before = if self.begun { ",\n" } else { "[\n" };
                write!(self.out, "{before}{}", as_json(line))?;
                self.begun = true;
            }
            return Ok(());
        }
        if let Some(folder) = folder {
            let gap = if self.begun { "\n" } else { "" };
            writeln!(self.out, "{gap}{folder}:")?;
        }
        self.begun = true;
        let rows: Vec<[String; 6]> = lines.iter().map(|line| self.row(line)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let [links, uid, gid, size] = [1, 2, 3, 4].map(width);
        for (row, line) in rows.iter().zip(lines) {
            write!(
                self.out,
                "{} {:>links$} {:>uid$} {:>gid$} {:>size$} {} {}",
                row[0],
                row[1],
                row[2],
                row[3],
                row[4],
                row[5],
                Printable(&line.name)
            )?;
            if let Some(target) = &line.target {
                write!(self.out, " -> {}", Printable(target.as_bytes()))?;
            }
            writeln!(self.out)?;
        }
        Ok(())
    }

    /// All of a line but the name.
    fn row(&self, line: &Line) -> [String; 6] {
        let Some(attr) = &line.attr else {
            return ["?---------", "?", "?", "?", "?", "?"].map(str::to_owned);
        };
        let size = match attr.mode & libc::S_IFMT {
            libc::S_IFCHR | libc::S_IFBLK => {
                format!("{},{}", libc::major(attr.rdev), libc::minor(attr.rdev))
            }
            _ if self.arguments.human_readable => table::human(attr.size),
            _ => attr.size.to_string(),
        };
        [
            mode(attr.mode),
            attr.nlink.to_string(),
            attr.uid.to_string(),
            attr.gid.to_string(),
            size,
            utc::date_and_time(attr.modified.secs),
        ]
    }
}

fn is_folder(attr: Option<&Attr>) -> bool {
    attr.is_some_and(|attr| attr.mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Type and permissions as `ls -l` shows them.
fn mode(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    let mut text = kind.to_string();
    for (class, (bit, with, without)) in special.into_iter().enumerate() {
        let rights = mode >> (6 - 3 * class) & 0o7;
        text.push(if rights & 4 != 0 { 'r' } else { '-' });
        text.push(if rights & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & bit != 0, rights & 1 != 0) {
            (true, true) => with,
            (true, false) => without,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn as_json(line: &Line) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut object = json!({ "path": text(&[b"/", line.path.as_bytes()].concat()) });
    let Some(attr) = &line.attr else { return object };
    let time = |Time { secs, nanos }: Time| utc::rfc3339(secs, nanos);
    let kind = match attr.mode & libc::S_IFMT {
        libc::S_IFDIR => "directory",
        libc::S_IFLNK => "symlink",
        libc::S_IFCHR => "character device",
        libc::S_IFBLK => "block device",
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        _ => "file",
    };
    object["type"] = kind.into();
    object["mode"] = format!("{:04o}", attr.mode & 0o7777).into();
    object["links"] = attr.nlink.into();
    object["inode"] = attr.ino.into();
    object["uid"] = attr.uid.into();
    object["gid"] = attr.gid.into();
    object["size"] = attr.size.into();
    object["stored"] = attr.blocks.saturating_mul(512).into();
    object["modified"] = time(attr.modified).into();
    object["accessed"] = time(attr.accessed).into();
    object["changed"] = time(attr.changed).into();
    if let Some(target) = &line.target {
        object["target"] = text(target.as_bytes()).into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_shown_as_ls_shows_them() {
        let table = [
            (libc::S_IFREG | 0o644, "-rw-r--r--"),
            (libc::S_IFDIR | 0o1777, "drwxrwxrwt"),
            (libc::S_IFREG | 0o4711, "-rws--x--x"),
            (libc::S_IFREG | 0o6644, "-rwSr-Sr--"),
            (libc::S_IFDIR | 0o1776, "drwxrwxrwT"),
            (libc::S_IFLNK | 0o777, "lrwxrwxrwx"),
            (libc::S_IFBLK, "b---------"),
        ];
        for (bits, expected) in table {
            assert_eq!(mode(bits), expected);
        }
    }
}
