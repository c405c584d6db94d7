//! The data of links of Windows, as Windows writes them.
//!
//! Follows \[MS-FSCC\] 2.1.2.4 and 2.1.2.5.

/// Kinds of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A junction, or a folder with a volume in it.
    Junction,
    /// A symbolic link with an absolute target.
    Absolute,
    /// One with a target on its own volume.
    Relative,
}

/// A link.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its kind.
    pub link: Link,
    /// Where it leads, as Windows opens it.
    pub target: &'a str,
}

impl Target<'_> {
    /// The value of the reparse point: the target, and the target as people see it, which mounted
    /// volumes do not have.
    ///
    /// # Panics
    /// For targets of more than 32 KiB.
    #[must_use]
    pub fn data(&self) -> Vec<u8> {
        let utf16 =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let number = |size: usize| u16::try_from(size).expect("targets are short");
        let print = self.target.strip_prefix("\\??\\").unwrap_or(self.target);
        let print = if print.starts_with("Volume{") { "" } else { print };
        let (target, print) = (utf16(self.target), utf16(print));
        let (tag, flags): (u32, &[u8]) = match self.link {
            Link::Junction => (0xa000_0003, &[]),
            Link::Absolute => (0xa000_000c, &[0, 0, 0, 0]),
            Link::Relative => (0xa000_000c, &[1, 0, 0, 0]),
        };
        // Both end in NUL, which their lengths leave out.
        let length = 8 + flags.len() + target.len() + print.len() + 4;
        let print_at = target.len() + 2;
        let mut data = tag.to_le_bytes().to_vec();
        for size in [length, 0, 0, target.len(), print_at, print.len()] {
            data.extend(number(size).to_le_bytes());
        }
        for piece in [flags, &target, &[0, 0], &print, &[0, 0]] {
            data.extend(piece);
        }
        data
    }
}
