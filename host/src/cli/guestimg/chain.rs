//! `guestimg chain`: what a disk is over, what is over it, and whether it all fits together.

use std::env;
use std::fmt::{Display, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use guestmnt_protocol::path::Printable;
use serde_json::{Value, json};

use super::output;
use super::output::say;
use super::table::{self, Row};
use crate::cli::utc;
use crate::image::history::{History, Identity, Member, StoredFile, history};
use crate::image::{Format, OpenOptions};

/// Shows the history of disks: bases, snapshots over them, what is missing or does not fit
#[derive(Args)]
pub struct Arguments {
    /// Any image of a chain, .vmx, or folder with images in it and below
    #[arg(value_name = "DISK|FOLDER", required = true)]
    paths: Vec<PathBuf>,

    /// Format of the disks named: raw, vmdk, qcow2, vdi, vpc, vhdx; told from the contents otherwise
    #[arg(long, value_name = "FMT")]
    format: Option<Format>,

    /// Folder whose files an image elsewhere may name: extents, backing files
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,

    /// A line for each file that an image is made of
    #[arg(short = 'l', long)]
    long: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints what was found; status 2 where something of it is broken.
///
/// # Errors
/// Where there is nothing to be found.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Display>> {
    let options = OpenOptions {
        format: arguments.format,
        allow_paths: arguments.allow_path.clone(),
        ..OpenOptions::default()
    };
    let found = history(&arguments.paths, &options).map_err(super::boxed)?;
    if arguments.json {
        say!("{:#}", as_json(&found));
    } else {
        output::print(format_args!("{}", as_text(&found, arguments.long)));
    }
    if found.cut_short {
        eprintln!("guestimg: there is more around than is looked at; name a folder for the rest");
    }
    let sound = found.members.iter().all(|member| member.problem.is_none());
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn as_text(history: &History, long: bool) -> String {
    let here = env::current_dir().ok();
    let here = here.as_deref();
    let mut rows: Vec<Row> = vec![
        ["Image", "Format", "Size", "On disk", "Files", "Changed (UTC)", "Id", "Parent's id"]
            .map(|title| Some(title.to_owned()))
            .into(),
    ];
    for root in history.roots() {
        for (index, depth) in history.tree(root) {
            let member = &history.members[index];
            let indent = "  ".repeat(depth);
            rows.push(row(member, &indent, here));
            if long {
                rows.extend(member.files.iter().map(|file| file_row(file, &indent, here)));
            }
        }
    }
    let mut text = table::lined_up(&rows);
    for root in history.roots() {
        if history.members.len() > 1 {
            let youngest = &history.members[history.youngest(root)];
            writeln!(text, "youngest: {}", shown(&youngest.path, here)).expect("into a string");
        }
        for (index, _) in history.tree(root) {
            if let Some(problem) = &history.members[index].problem {
                writeln!(text, "broken: {problem}").expect("into a string");
            }
            for other in history.could_be_parents(index) {
                let other = shown(&history.members[other].path, here);
                writeln!(text, "  {other} has the id of its parent").expect("into a string");
            }
        }
    }
    text
}

fn row(member: &Member, indent: &str, here: Option<&Path>) -> Row {
    let format = match member.create_type {
        Some(create_type) => format!("{} {}", member.format, create_type.name()),
        None => member.format.to_string(),
    };
    vec![
        Some(format!("{indent}{}", shown(&member.path, here))),
        Some(format),
        member.size.map(table::human),
        Some(table::human(member.on_disk())),
        Some(member.files.len().to_string()),
        member.changed().map(|time| utc::date_and_time(utc::since_1970(time).0)),
        identity(member.identity),
        identity(member.parent_identity),
    ]
}

fn file_row(file: &StoredFile, indent: &str, here: Option<&Path>) -> Row {
    vec![
        Some(format!("{indent}  + {}", shown(&file.path, here))),
        Some("file".to_owned()),
        Some(table::human(file.len)),
        Some(table::human(file.on_disk)),
        None,
        file.changed.map(|time| utc::date_and_time(utc::since_1970(time).0)),
        None,
        None,
    ]
}

fn identity(identity: Option<Identity>) -> Option<String> {
    identity.map(|identity| identity.to_string())
}

/// A path as it may go to a terminal, from the current folder where it is below that.
fn shown(path: &Path, here: Option<&Path>) -> String {
    let relative = here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path);
    Printable(relative.as_os_str().as_bytes()).to_string()
}

fn as_json(history: &History) -> Value {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let time = |time| {
        let (seconds, nanos) = utc::since_1970(time);
        utc::rfc3339(seconds, nanos)
    };
    let members = history.members.iter().enumerate().map(|(index, member)| {
        let files = member.files.iter().map(|file| {
            json!({
                "path": path(&file.path),
                "size": file.len,
                "on_disk": file.on_disk,
                "changed": file.changed.map(time),
            })
        });
        let could_be = history.could_be_parents(index).into_iter();
        json!({
            "path": path(&member.path),
            "format": member.format.to_string(),
            "create_type": member.create_type.map(|create_type| create_type.name()),
            "size": member.size,
            "on_disk": member.on_disk(),
            "changed": member.changed().map(time),
            "id": identity(member.identity),
            "parent_id": identity(member.parent_identity),
            "parent": member.parent.map(|parent| path(&history.members[parent].path)),
            "could_be_parents": could_be.map(|n| path(&history.members[n].path)).collect::<Vec<_>>(),
            "files": files.collect::<Vec<_>>(),
            "problem": member.problem.as_ref().map(ToString::to_string),
        })
    });
    let youngest = history.roots().into_iter().map(|root| history.youngest(root));
    json!({
        "images": members.collect::<Vec<_>>(),
        "youngest": youngest.map(|n| path(&history.members[n].path)).collect::<Vec<_>>(),
        "cut_short": history.cut_short,
    })
}
