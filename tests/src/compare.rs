//! Byte for byte, with a message that shows where the difference begins.

/// Fails, with the first difference in its lines, unless `actual` is exactly `expected`.
#[track_caller]
pub fn assert_same(what: &str, expected: &[u8], actual: &[u8]) {
    if let Some(message) = difference(expected, actual) {
        panic!("{what}: {message}");
    }
}

fn difference(expected: &[u8], actual: &[u8]) -> Option<String> {
    let same = expected.iter().zip(actual).take_while(|(a, b)| a == b).count();
    if same == expected.len() && same == actual.len() {
        return None;
    }
    let line = 1 + expected[..same].iter().filter(|&&byte| byte == b'\n').count();
    Some(format!(
        "first difference at byte {same}, line {line} (of {} and {} bytes)\n  before   {:?}\n  expected {:?}\n  actual   {:?}",
        expected.len(),
        actual.len(),
        shown(&expected[same.saturating_sub(60)..same]),
        shown(around(expected, same)),
        shown(around(actual, same)),
    ))
}

fn around(bytes: &[u8], at: usize) -> &[u8] {
    &bytes[at..bytes.len().min(at + 80)]
}

fn shown(bytes: &[u8]) -> String {
    if bytes.is_empty() { "(end)".into() } else { String::from_utf8_lossy(bytes).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn equal_bytes_have_no_difference() {
        assert_eq!(difference(b"a\nb\n", b"a\nb\n"), None);
    }

    #[test]
    fn the_first_difference_is_named() {
        let message = difference(b"1\n2\n3\n", b"1\n2\n4\n").unwrap();
        assert!(message.contains("byte 4, line 3") && message.contains("\"4\\n\""), "{message}");
    }

    #[test]
    fn what_is_missing_at_the_end_is_a_difference() {
        let message = difference(b"1\n2\n", b"1\n").unwrap();
        assert!(message.contains("byte 2, line 2") && message.contains("(end)"), "{message}");
    }
}
