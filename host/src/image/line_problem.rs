//! What can be wrong with a line of a VMDK's descriptor.

use std::fmt;

use guestmnt_protocol::path::Printable;

use super::name::NameError;

/// What is wrong with a line of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LineProblem {
    /// Neither comment nor setting nor extent.
    Unknown,
    /// A zero byte.
    Nul,
    /// A setting that was there before.
    Repeated(&'static str),
    /// A setting whose value is not of its kind.
    BadValue(&'static str),
    /// A descriptor of a later version.
    Version,
    /// An extent that is a physical device; its name.
    Device(String),
    /// A `createType` that is not known; its name.
    CreateType(String),
    /// An extent line that ends too early or goes on too long.
    Form,
    /// An extent of no or too many sectors.
    Sectors,
    /// An extent's type that is not known; its name.
    ExtentType(String),
    /// An extent that nobody may read.
    NoAccess,
    /// A name that cannot be that of a file.
    Name(NameError),
}

impl fmt::Display for LineProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| Printable(text.as_bytes()).to_string();
        match self {
            Self::Unknown => f.write_str("is neither a setting nor an extent"),
            Self::Nul => f.write_str("has a zero byte"),
            Self::Repeated(key) => write!(f, "says {key} again"),
            Self::BadValue(key) => write!(f, "gives {key} no valid value"),
            Self::Version => f.write_str("names a version that is not known"),
            Self::Device(name) => write!(
                f,
                "has \"{}\": a physical device of another machine, not a file",
                quoted(name)
            ),
            Self::CreateType(name) => write!(f, "has unknown createType \"{}\"", quoted(name)),
            Self::Form => f.write_str("is not a whole extent: ACCESS SECTORS TYPE \"NAME\" OFFSET"),
            Self::Sectors => f.write_str("has an extent of no valid size"),
            Self::ExtentType(name) => write!(f, "has unknown extent type {}", quoted(name)),
            Self::NoAccess => f.write_str("has an extent with NOACCESS: its data is not there"),
            Self::Name(e) => write!(f, "{e}"),
        }
    }
}
