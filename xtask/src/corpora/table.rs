//! The expectations: a line for each image, with tabs between the columns.
//!
//! | column | |
//! | --- | --- |
//! | image | its name in the archive, see [`super::unpack`] |
//! | sha256 | of the file in the archive |
//! | run | `quick` in every run of the tests, otherwise `full` |
//! | arguments | of guestimg, besides the image |
//! | filesystems | device and type of each, by `guestimg filesystems`, where status or messages tell of a problem |
//! | status | of `guestimg tar --all` |
//! | contents | what its stream holds, see [`super::listing`] |
//! | said | the first line of its messages |
//! | peers | the programs that read the same, or see the same |
//! | reason | why it is not simply all of the image's files |
//!
//! What is not there is `-`.

use std::fmt;

use super::trial::Observed;

/// The columns, as the first line of a table names them.
const TITLE: &str =
    "image\tsha256\trun\targuments\tfilesystems\tstatus\tcontents\tsaid\tpeers\treason";

/// An image and what is expected of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name in the archive.
    pub image: String,
    /// SHA-256 of the file in the archive.
    pub sha256: String,
    /// Whether every run of the tests tries it.
    pub is_quick: bool,
    /// Arguments of guestimg, besides the image.
    pub arguments: Vec<String>,
    /// What guestimg should show.
    pub expected: Observed,
    /// Which other programs agree.
    pub peers: String,
    /// Why it is not simply all of the image's files.
    pub reason: String,
}

/// Reads a table. Tables are part of this program.
///
/// # Panics
/// At a line without all columns.
#[must_use]
pub fn parse(table: &str) -> Vec<Row> {
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some(TITLE), "a table begins with its title");
    lines.map(|line| parse_row(line).unwrap_or_else(|| panic!("no row: {line}"))).collect()
}

fn parse_row(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [image, sha256, run, arguments, filesystems, status, contents, said, peers, reason] =
        fields[..]
    else {
        return None;
    };
    let arguments = if arguments == "-" { "" } else { arguments };
    Some(Row {
        image: image.to_owned(),
        sha256: sha256.to_owned(),
        is_quick: match run {
            "quick" => true,
            "full" => false,
            _ => return None,
        },
        arguments: arguments.split_whitespace().map(str::to_owned).collect(),
        expected: Observed {
            filesystems: filesystems.to_owned(),
            status: status.to_owned(),
            contents: contents.to_owned(),
            said: said.to_owned(),
        },
        peers: peers.to_owned(),
        reason: reason.to_owned(),
    })
}

/// A table of `rows`.
#[must_use]
pub fn render(rows: &[Row]) -> String {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    format!("{TITLE}\n{lines}")
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = if self.is_quick { "quick" } else { "full" };
        let arguments = self.arguments.join(" ");
        let arguments = if arguments.is_empty() { "-" } else { &arguments };
        let Observed { filesystems, status, contents, said } = &self.expected;
        let fields = [
            &self.image,
            &self.sha256,
            run,
            arguments,
            filesystems,
            status,
            contents,
            said,
            &self.peers,
            &self.reason,
        ];
        f.write_str(&fields.join("\t"))
    }
}

impl Row {
    /// The row of an image that has none yet: nothing is known of it.
    #[must_use]
    pub fn unlisted(image: String) -> Self {
        let nothing = || "-".to_owned();
        Self {
            image,
            sha256: nothing(),
            is_quick: false,
            arguments: Vec::new(),
            expected: Observed {
                filesystems: nothing(),
                status: nothing(),
                contents: nothing(),
                said: nothing(),
            },
            peers: nothing(),
            reason: nothing(),
        }
    }

    /// Whether something has to be said about the row: not all is well, a program differs, or none
    /// has read the same.
    #[must_use]
    pub fn needs_reason(&self) -> bool {
        let Observed { status, said, .. } = &self.expected;
        let marks = || self.peers.split(' ');
        let is_confirmed =
            marks().any(|mark| mark != "-" && mark != "blkid" && !mark.starts_with('!'));
        let is_disputed = marks().any(|mark| mark.starts_with('!'));
        status != "0" || said != "-" || !is_confirmed || is_disputed
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::SOURCES;
    use super::*;

    #[test]
    fn a_row_is_written_as_it_was_read() {
        let line = "a.img.xz\tabc\tquick\t--format raw\tsda ext2\t0\t3 entries\t-\tdebugfs\t-";
        let table = format!("{TITLE}\n{line}\n");
        let rows = parse(&table);
        assert_eq!(rows[0].arguments, ["--format", "raw"]);
        assert_eq!(render(&rows), table);
        assert!(!rows[0].needs_reason());
        assert_eq!(parse_row("a.img.xz\tabc"), None);
    }

    #[test]
    fn every_row_that_is_not_confirmed_success_has_a_reason() {
        for source in SOURCES {
            for row in parse(source.table) {
                let is_explained = row.reason.len() > 1 || !row.needs_reason();
                assert!(is_explained, "{}: {}", source.name, row.image);
            }
        }
    }

    #[test]
    fn no_image_has_two_rows_with_the_same_arguments() {
        for source in SOURCES {
            let mut keys: Vec<_> =
                parse(source.table).into_iter().map(|row| (row.image, row.arguments)).collect();
            let count = keys.len();
            keys.sort();
            keys.dedup();
            assert_eq!(keys.len(), count, "{}", source.name);
        }
    }
}
