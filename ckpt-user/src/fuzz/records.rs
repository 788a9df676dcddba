//! Records of jobs, the control socket, names and arguments.

use crate::cli;
use crate::job::control::{self, Reply, Request};
use crate::job::directory::generation_of;
use crate::job::record::{Here, JobRecord, RecordedOptions, standing};
use crate::job::registry::{Entry, Target, name_of};
use crate::job::slurm::{costs, left, place};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub mod job_json {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let Ok(record) = serde_json::from_slice::<JobRecord>(bytes) else { return };
        let here = Here { host: "a".into(), boot_id: "b".into(), machine: Some("m".into()) };
        let _ = standing(&record, &here, |_| true);
        let _ = record.options.interval();
        let _ = RecordedOptions::merged(&crate::job::options::JobOptions::default(), Some(&record.options));
        let text = serde_json::to_vec(&record).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<JobRecord>(&text).ok(), Some(record));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        texts(&[
            r#"{"job":"01234567-89ab-cdef-0123-456789abcdef","epoch":3,"host":"a","boot_id":"b","machine":"m","supervisor":{"pid":41,"start_time":6},"pid":42,"start_time":7,"ended":85,"checkpointed":true,"slurm":{"job":"40_3","restarts":1,"node":"n1"},"socket":"/run/ckptbpf/0/41-6.sock","options":{"interval_us":5000000,"keep":2,"compress":"lz4","ckpt_signal":10},"argv":["./count"]}"#,
            r#"{"job":"j","epoch":1,"host":"","boot_id":"","machine":null,"supervisor":{"pid":1,"start_time":0},"options":{},"argv":[]}"#,
        ])
    }
}

pub mod registry {
    use super::*;

    pub fn run(bytes: &[u8]) {
        if let Ok(entry) = serde_json::from_slice::<Entry>(bytes) {
            // The name by which it is believed, and its socket is found, whatever it says itself.
            assert!(!name_of(entry.supervisor).contains('/'));
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        texts(&[
            r#"{"job":"j","dir":"/tmp/ckpt_count","pid":42,"start_time":7,"supervisor":{"pid":41,"start_time":6},"argv":["./count"],"uid":0,"socket":"/etc/passwd"}"#,
        ])
    }
}

/// A line as it comes out of a socket.
fn line(bytes: &[u8]) -> Vec<u8> {
    let Ok((mut ours, mut theirs)) = UnixStream::pair() else { return Vec::new() };
    let some = bytes.get(..3 * control::LINE_LIMIT).unwrap_or(bytes);
    let sent = theirs.write_all(some);
    assert!(sent.is_ok(), "{sent:?}");
    drop(theirs);
    let line = control::read_line(&mut ours, Some(Duration::from_secs(5))).unwrap_or_default();
    assert!(line.len() < control::LINE_LIMIT && !line.contains(&b'\n'));
    line
}

pub mod request {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let _ = serde_json::from_slice::<Request>(&line(bytes));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        texts(&[
            "{\"request\":\"checkpoint\",\"kill\":true}\n",
            "{\"request\":\"status\"}\n",
            "{\"request\":\"interval\",\"microseconds\":5000000}\n",
            "{\"request\":\"kill\"}\n",
        ])
    }
}

pub mod reply {
    use super::*;

    pub fn run(bytes: &[u8]) {
        if let Ok(reply) = serde_json::from_slice::<Reply>(&line(bytes)) {
            let _ = serde_json::to_vec(&reply);
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        texts(&[
            "{\"error\":\"no\"}\n",
            "{\"ok\":true,\"id\":3,\"parent\":2,\"kind\":\"delta\",\"freeze_us\":1,\"elapsed_us\":2,\"pages\":3,\"bytes_stored\":4,\"killed\":false}\n",
            "{\"ok\":true,\"pid\":7,\"processes\":1,\"interval_s\":2.5,\"last_id\":1,\"last_age_s\":0.1,\"checkpoints\":1,\"failures\":0,\"last_error\":null,\"busy\":false,\"pages_missing\":9}\n",
        ])
    }
}

/// Names in a job's directory.
pub mod names {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let of_image = std::str::from_utf8(bytes).ok().and_then(crate::image::fuzz::name);
        assert_eq!(generation_of(bytes), of_image);
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        texts(&["000007.ckpt", "1000000.ckpt", "18446744073709551615.ckpt", "../000001.ckpt"])
    }
}

/// Times, signals and jobs on the command line.
pub mod arguments {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let _ = cli::duration::parse(&text);
        if let Ok(signal) = cli::signal::parse(&text) {
            assert!((1..=64).contains(&signal));
        }
        if let Target::Pid(pid) = Target::parse(OsStr::from_bytes(bytes)) {
            assert!(pid > 0);
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        texts(&["10", "0.5", "2h", "USR1", "SIGTERM", "RTMIN+3", "rtmax-1", "./1", "99999999999999999999"])
    }
}

/// What Slurm's commands answer, names of its jobs, and the log by which the last checkpoint is planned.
pub mod slurm {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let _ = left::parse(&text);
        let _ = costs::slowest_of(&text);
        let _ = costs::spent_of(&text, Duration::ZERO, Duration::from_secs(9));
        if place::is_name(&text) {
            assert!(text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_'));
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let log = r#"{"time":1.5,"phase":"checkpoint","microseconds":812,"id":17,"pages":4096}"#;
        let restart = r#"{"time":1.25,"phase":"restart","microseconds":99,"id":17}"#;
        let both = format!("{restart}\n{log}\n");
        texts(&["RUNNING 1-02:03:04\n", "COMPLETING INVALID", "4711", "40_3", log, &both])
    }
}
