//! What lies about for the names of DMTCP, and their command lines.

use crate::cli::compat::options::{self, PROGRAMS};
use crate::job::coordinator::{Name, State};
use crate::job::pointer::Pointer;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

pub mod dmtcp_pointer {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let Ok(pointer) = Pointer::parse(bytes) else { return };
        assert!(pointer.dir.as_ref().is_none_or(|dir| dir.is_absolute()));
        let places = pointer.places(Path::new("d/ckpt_count_0123456789abcdef.dmtcp"));
        assert!(places.first().is_some_and(|first| first == Path::new("d/.ckpt_count_0123456789abcdef")));
        assert!(Pointer::parse(pointer.text().as_bytes()).is_ok_and(|again| again.job == pointer.job));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let pointer = Pointer {
            job: "01234567-89ab-cdef-0123-456789abcdef".into(),
            dir: Some("/scratch/me/.ckpt_count_0123456789abcdef".into()),
            program: "./count".into(),
            host: "n1".into(),
        };
        vec![pointer.text().into_bytes(), b"DMTCP_CHECKPOINT_IMAGE_v2.0\n".to_vec()]
    }
}

pub mod dmtcp_state {
    use super::*;

    pub fn run(bytes: &[u8]) {
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Some(name) = Name::parse(text)
        {
            assert_eq!(name.to_string(), text);
        }
        let Some(state) = State::parse(bytes, "b", |_| true) else { return };
        let text = serde_json::to_vec(&state).unwrap_or_default();
        assert_eq!(State::parse(&text, "b", |_| true), Some(state));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let state = r#"{"boot_id":"b","process":{"pid":41,"start_time":6},"interval_s":60,"exit_after_ckpt":true,"exit_on_last":false}"#;
        [state, "7779", "7779.41"].map(|text| text.as_bytes().to_vec()).to_vec()
    }
}

/// A word a line.
pub mod dmtcp_words {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let words: Vec<OsString> =
            bytes.split(|byte| *byte == b'\n').map(|word| OsString::from_vec(word.to_vec())).collect();
        for program in PROGRAMS {
            if let Ok(asked) = options::parse(program, &words) {
                assert!(words.ends_with(&asked.rest));
            }
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        [
            "-i\n10\n./count",
            "--exit-after-ckpt\n--daemon\n-p0\n--port-file\nport",
            "-i\n45\n-h\nn1\n--coord-port\n7779\nckpt_a.dmtcp\nckpt_b.dmtcp",
            "-c\nd\n--no-gzip\n--rm\n--ckpt-signal\n10\n--\n./count\n-x",
            "-p\n7779\n-bc\nk\ni\n30",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }
}
