//! The extension headers of POSIX.1-2001, "pax": what they say of the entry behind them, with GNU
//! tar's records of sparse files and the extended attributes of star.

use std::io;

use guestmnt_protocol::attr::Time;

use super::tar_reader::damaged;

/// What extension headers say of the entry behind them.
#[derive(Default)]
pub struct Extension {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub modified: Option<Time>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// What the records of a sparse file say.
#[derive(Default)]
pub struct Sparse {
    /// Whether there are such.
    pub is_told: bool,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
}

impl Extension {
    /// Reads records of `LENGTH KEY=VALUE\n`; values may hold any bytes.
    pub fn read(&mut self, mut records: &[u8]) -> io::Result<()> {
        let bad = || damaged("an extension header makes no sense");
        while !records.is_empty() {
            let space = records.iter().position(|&byte| byte == b' ').ok_or_else(bad)?;
            let length: usize = digits(&records[..space]).ok_or_else(bad)?;
            let record = records.get(space + 1..length).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(digits(value).ok_or_else(bad)?),
                b"uid" => self.uid = Some(digits(value).ok_or_else(bad)?),
                b"gid" => self.gid = Some(digits(value).ok_or_else(bad)?),
                b"mtime" => self.modified = Some(time(value).ok_or_else(bad)?),
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.note(key, value);
                    }
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
            records = &records[length..];
        }
        Ok(())
    }
}

impl Sparse {
    fn note(&mut self, key: &[u8], value: &[u8]) {
        self.is_told = true;
        match key {
            b"major" => self.major = digits(value),
            b"minor" => self.minor = digits(value),
            b"name" => self.name = Some(value.to_vec()),
            b"realsize" => self.size = digits(value),
            _ => {}
        }
    }
}

fn digits<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    // A fraction goes away from zero, and nanoseconds count up.
    if whole.starts_with('-') && nanos > 0 {
        return Some(Time { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Time { secs, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_from_the_second_before() {
        for (text, secs, nanos) in
            [("5", 5, 0), ("5.25", 5, 250_000_000), ("-0.5", -1, 500_000_000), ("-2", -2, 0)]
        {
            assert_eq!(time(text.as_bytes()), Some(Time { secs, nanos }), "{text}");
        }
        assert_eq!(time(b"x"), None);
    }

    #[test]
    fn records_may_hold_any_bytes() {
        let mut extension = Extension::default();
        extension.read(b"12 path=a/b\n30 SCHILY.xattr.user.x=1\n2=3\0\n").unwrap();
        assert_eq!(extension.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(extension.xattrs, [(b"user.x".to_vec(), b"1\n2=3\0".to_vec())]);
        for bad in [&b"9 path=a"[..], b"x path=a\n", b"99 path=a\n", b"0 a=b\n", b"5 a=b\nz"] {
            assert!(Extension::default().read(bad).is_err(), "{bad:?}");
        }
    }
}
