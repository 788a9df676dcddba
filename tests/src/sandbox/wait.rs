//! The only place where a test sleeps: between two looks at a condition that has a name and a deadline, and before a
//! deed whose moment is to be random.

use std::time::{Duration, Instant};

const BETWEEN_LOOKS: Duration = Duration::from_millis(3);

/// A deadline, multiplied by `CKPTBPF_TEST_TIMEOUT_SCALE` for slow and busy machines.
pub fn scaled(deadline: Duration) -> Duration {
    let scale = std::env::var("CKPTBPF_TEST_TIMEOUT_SCALE").ok().and_then(|text| text.parse::<f64>().ok());
    deadline.mul_f64(scale.unwrap_or(1.0))
}

/// Looks until the condition holds; says why it gave up.
pub fn until(
    deadline: Duration,
    mut ended: impl FnMut() -> Option<String>,
    mut cond: impl FnMut() -> bool,
) -> Option<String> {
    let deadline = scaled(deadline);
    let start = Instant::now();
    while !cond() {
        if let Some(why) = ended() {
            return Some(why);
        }
        if start.elapsed() > deadline {
            return Some(format!("not within {} s", deadline.as_secs_f64()));
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    None
}

/// Lets a random time go by, so that what follows hits a random moment. Nothing may depend on it having been enough.
pub fn let_pass(moment: Duration) {
    std::thread::sleep(moment);
}
