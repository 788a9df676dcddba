//! Sizes on the command line: bytes, or `512K`, `64M`, `4G`, `1T`, of 1024 each.

/// Parses a size; none is 0.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size; write bytes, or 512K, 64M, 4G, 1T");
    let (number, shift) = match text.strip_suffix(['K', 'M', 'G', 'T']) {
        Some(number) if text.ends_with('K') => (number, 10),
        Some(number) if text.ends_with('M') => (number, 20),
        Some(number) if text.ends_with('G') => (number, 30),
        Some(number) => (number, 40),
        None => (text, 0),
    };
    // The syntax of integers has signs, too.
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_and_their_multiples() {
        let cases = [("4096", 4096), ("1K", 1 << 10), ("96M", 96 << 20), ("2G", 2 << 30), ("1T", 1 << 40)];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "0", "0G", "-1", "+1", "1.5G", "1 G", "1g", "1GB", "1e3", "99999999T", "١"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error(text in "\\PC{0,12}") {
            prop_assert!(parse(&text).map_or(true, |bytes| bytes > 0));
        }
    }
}
