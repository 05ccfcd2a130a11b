//! Recorded bytes are written in hexadecimal.

/// Reads pairs of hexadecimal digits.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
