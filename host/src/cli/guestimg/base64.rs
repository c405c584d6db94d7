//! Bytes as base64, as they come: what files hold, within JSON. Follows RFC 4648, section 4.

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The text of bytes that come in pieces of any size.
#[derive(Default)]
pub struct Base64 {
    /// Up to two bytes that do not make four letters yet.
    rest: Vec<u8>,
}

impl Base64 {
    /// The text that is whole with these bytes.
    pub fn piece(&mut self, bytes: &[u8]) -> String {
        let mut bytes = [std::mem::take(&mut self.rest).as_slice(), bytes].concat();
        self.rest = bytes.split_off(bytes.len() - bytes.len() % 3);
        letters(&bytes)
    }

    /// What is left at the end.
    pub fn end(self) -> String {
        letters(&self.rest)
    }
}

fn letters(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place) & 63) as usize;
            text.push(if place <= three.len() { char::from(LETTERS[index]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_rfc_4648_however_they_come() {
        let table = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("\u{3ff}\u{3fe}", "z7/Pvg=="),
        ];
        for (bytes, text) in table {
            for size in 1..5 {
                let mut base64 = Base64::default();
                let mut pieces = bytes.as_bytes().chunks(size);
                let whole: String = pieces.by_ref().map(|piece| base64.piece(piece)).collect();
                assert_eq!(whole + &base64.end(), text);
            }
        }
    }
}
