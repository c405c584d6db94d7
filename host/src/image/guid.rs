//! The 16 bytes by which formats tell images apart.

use std::fmt;

/// An id as it lies in a file. Compared, and shown to people, no more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

/// What tells an image of VirtualBox, and a state of it, from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageIds {
    /// Given when it was made.
    pub image: Guid,
    /// Given when it was last written to; may be nil.
    pub modification: Guid,
}

impl Guid {
    /// For none.
    pub const NIL: Self = Self([0; 16]);

    /// Whether it stands for none.
    #[must_use]
    pub fn is_nil(self) -> bool {
        self == Self::NIL
    }

    /// Reads `83ed0ec3-24c8-49a6-a959-5e4bf1288bfb`, whose first three groups lie in a file in
    /// the order of Windows.
    pub(super) fn parse(digits: &str) -> Option<Self> {
        let groups: Vec<&str> = digits.split('-').collect();
        let lengths = groups.iter().map(|group| group.len());
        if !digits.is_ascii() || !lengths.eq([8, 4, 4, 4, 12]) {
            return None;
        }
        let mut bytes = [0; 16];
        let digits: String = groups.concat();
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).ok()?;
        }
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        Some(Self(bytes))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0;
        let (d1, d2) =
            (u32::from_le_bytes([b[0], b[1], b[2], b[3]]), u16::from_le_bytes([b[4], b[5]]));
        write!(f, "{d1:08x}-{d2:04x}-{:04x}-", u16::from_le_bytes([b[6], b[7]]))?;
        write!(f, "{:02x}{:02x}-", b[8], b[9])?;
        b[10..].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_they_are_read() {
        let text = "83ed0ec3-24c8-49a6-a959-5e4bf1288bfb";
        let id = Guid::parse(text).unwrap();
        assert_eq!(id.0[..8], [0xc3, 0x0e, 0xed, 0x83, 0xc8, 0x24, 0xa6, 0x49]);
        assert_eq!(id.to_string(), text);
        for bad in ["", "----", &text[1..], "+3ed0ec3-24c8-49a6-a959-5e4bf1288bfb"] {
            assert!(Guid::parse(bad).is_none_or(|id| id.to_string() != bad), "{bad}");
        }
    }
}
