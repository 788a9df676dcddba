//! Times on the command line: seconds with fractions, or `10s`, `5m`, `2h`; `0` is off.

use std::time::Duration;

/// Shorter intervals than this are no intervals.
const SHORTEST: Duration = Duration::from_millis(1);
/// Ten years: longer is a mistake in the unit.
const LONGEST: f64 = 10.0 * 365.25 * 86_400.0;

/// Parses a time.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time; write seconds (10, 0.5) or 10s, 5m, 2h; 0 is off");
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60.0),
        Some(number) if text.ends_with('h') => (number, 3600.0),
        Some(number) => (number, 1.0),
        None => (text, 1.0),
    };
    // f64's own syntax has signs, exponents, `inf` and `nan`; none of them is a time.
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(wrong());
    }
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * unit;
    if seconds > LONGEST {
        return Err(format!("'{text}' is more than ten years; is the unit right?"));
    }
    let time = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if seconds > 0.0 && time < SHORTEST {
        return Err(format!("'{text}' is shorter than a millisecond; 0 is off"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn seconds_minutes_hours_and_fractions() {
        let cases = [
            ("10", 10_000),
            ("0.5", 500),
            (".5", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("0", 0),
        ];
        for (text, milliseconds) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in [
            "", "s", "-1", "+1", "1e3", "inf", "nan", "1d", "1ms", "1 s", "1.2.3", ".", "0.0001", "999999h",
            "١",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_time_or_an_error(text in "\\PC{0,12}") {
            if let Ok(time) = parse(&text) {
                prop_assert!(time.is_zero() || time >= SHORTEST);
                prop_assert!(time.as_secs_f64() <= LONGEST);
            }
        }

        #[test]
        fn what_is_written_is_what_is_meant(milliseconds in 1u64..100_000_000, unit in 0usize..4) {
            let (name, factor) = [("", 1.0), ("s", 1.0), ("m", 60.0), ("h", 3600.0)][unit];
            let seconds = milliseconds as f64 / 1000.0;
            let time = parse(&format!("{}{name}", seconds / factor)).ok();
            prop_assume!(time.is_some());
            prop_assert!((time.unwrap().as_secs_f64() - seconds).abs() < 1e-6);
        }
    }
}
