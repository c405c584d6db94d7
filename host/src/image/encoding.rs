//! The character encoding in which VMware wrote a text: that of the Windows or Linux it ran on,
//! which an `encoding` line names.

use encoding_rs::{Encoding, UTF_8};

/// What the bytes of names in a text stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextEncoding(Option<&'static Encoding>);

impl TextEncoding {
    /// Not named: the bytes are taken as they are.
    pub const UNKNOWN: Self = Self(None);

    /// That of a name such as `windows-1252`, `GBK` or `Shift_JIS`, in any case. One that is not
    /// known, or in which ASCII has other bytes, is as good as none.
    pub fn named(name: &[u8]) -> Self {
        // The numbers of Windows' code pages that the standard has no labels for.
        const CODE_PAGES: [(&[u8], &[u8]); 4] =
            [(b"932", b"shift_jis"), (b"936", b"gbk"), (b"949", b"euc-kr"), (b"950", b"big5")];
        let lower = name.to_ascii_lowercase();
        let page = [&b"windows-"[..], b"cp", b"ms"].iter().find_map(|prefix| {
            let number = lower.strip_prefix(*prefix)?;
            CODE_PAGES.iter().find(|(page, _)| *page == number).map(|(_, label)| *label)
        });
        let found = Encoding::for_label(page.unwrap_or(name));
        Self(found.filter(|encoding| encoding.is_ascii_compatible()))
    }

    /// `bytes` in UTF-8, where they are something else and a text in this encoding.
    pub fn to_utf8(self, bytes: &[u8]) -> Option<Vec<u8>> {
        let encoding = self.0.filter(|encoding| *encoding != UTF_8)?;
        let text = encoding.decode_without_bom_handling_and_without_replacement(bytes)?;
        (text.as_bytes() != bytes).then(|| text.into_owned().into_bytes())
    }
}

/// The encoding that a text says it is in: the value of its first line with `key`, in any case, with
/// or without quotes.
pub fn of_text<'t>(lines: impl Iterator<Item = &'t [u8]>, key: &[u8]) -> TextEncoding {
    let value = |line: &'t [u8]| {
        let line = line.trim_ascii();
        let (start, rest) = line.split_at_checked(key.len())?;
        let value = rest.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
        start.eq_ignore_ascii_case(key).then_some(value)
    };
    let unquoted = |value: &'t [u8]| {
        value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)
    };
    let named = lines.filter_map(value).map(unquoted).next();
    named.map_or(TextEncoding::UNKNOWN, TextEncoding::named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_as_the_text_says() {
        let table: [(&str, &[u8], Option<&str>); 10] = [
            ("windows-1252", b"Pr\xfcf", Some("Prüf")),
            ("WINDOWS-1251", b"\xf2\xe5\xf1\xf2", Some("тест")),
            ("GBK", b"\xb2\xe2\xca\xd4", Some("测试")),
            ("GB18030", b"\xb2\xe2\xca\xd4", Some("测试")),
            ("windows-936", b"\xb2\xe2\xca\xd4", Some("测试")),
            // The second byte of the first character is a backslash.
            ("Shift_JIS", b"\x83\x5c", Some("ソ")),
            ("GBK", b"\xff\xff", None),
            ("UTF-8", "ü".as_bytes(), None),
            ("UTF-16LE", b"a\0", None),
            ("klingon", b"Pr\xfcf", None),
        ];
        for (encoding, bytes, expected) in table {
            let text = format!("a=b\r\n.Encoding = \"{encoding}\"\r\n");
            let found = of_text(text.as_bytes().split(|&byte| byte == b'\n'), b".encoding");
            let decoded = found.to_utf8(bytes);
            assert_eq!(decoded.as_deref(), expected.map(str::as_bytes), "{encoding}");
        }
        assert_eq!(of_text([&b"version=1"[..]].into_iter(), b"encoding"), TextEncoding::UNKNOWN);
    }
}
