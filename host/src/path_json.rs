//! Paths in JSON, whose strings are Unicode: a path that is not stands there as
//! `{"text": …, "bytes": [ … ]}`, the first for people and the second as it is.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use guestmnt_protocol::path::Printable;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// A path as it stands in JSON.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Form {
    Unicode(String),
    Other { text: String, bytes: Vec<u8> },
}

impl Form {
    fn of(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Unicode(text.to_owned()),
            None => {
                let bytes = path.as_os_str().as_bytes().to_vec();
                Self::Other { text: Printable(&bytes).to_string(), bytes }
            }
        }
    }

    fn into_path(self) -> PathBuf {
        match self {
            Self::Unicode(text) => text.into(),
            Self::Other { bytes, .. } => OsString::from_vec(bytes).into(),
        }
    }
}

/// A path as a value.
#[must_use]
pub fn value(path: &Path) -> Value {
    serde_json::to_value(Form::of(path)).expect("strings and numbers are JSON")
}

/// For serde: a path.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    Form::of(path).serialize(serializer)
}

/// For serde: several paths.
pub mod list {
    use super::{Deserialize, Deserializer, Form, PathBuf, Serializer};

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(|path| Form::of(path)))
    }

    /// # Errors
    /// Those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<Vec<PathBuf>, D::Error> {
        let forms = Vec::<Form>::deserialize(source)?;
        Ok(forms.into_iter().map(Form::into_path).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_comes_back_as_it_was() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Paths(#[serde(with = "list")] Vec<PathBuf>);
        let odd: PathBuf = OsString::from_vec(b"/disk \xff.raw".to_vec()).into();
        let paths = Paths(vec!["/a b\u{e4}".into(), odd.clone()]);
        let text = serde_json::to_string(&paths).unwrap();
        assert!(
            text.starts_with("[\"/a b\u{e4}\",{\"text\":\"/disk \\\\xff.raw\",\"bytes\":["),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Paths>(&text).unwrap(), paths);
        assert_eq!(value(&odd)["bytes"][6], 255);
        assert_eq!(value(Path::new("/a")), "/a");
    }
}
