//! What `ckptbpf` prints as JSON, and the tree that /proc shows.

use serde::Deserialize;
use serde_json::Value;

use crate::sandbox::Process;

/// One line of `list --json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Generation {
    pub id: u64,
    pub parent: Option<u64>,
    /// `full` or `delta`.
    pub kind: String,
    pub freeze_us: u64,
    pub elapsed_us: u64,
    pub pages: u64,
    pub zero_pages: u64,
    pub bytes_memory: u64,
    pub bytes_stored: u64,
    pub tasks: u64,
    pub complete: bool,
}

/// The program's process id in `status --json DIR`, once a supervisor answers for it.
pub fn supervised_pid(json: &[u8]) -> Option<i32> {
    let status: Value = serde_json::from_slice(json).expect("status --json prints JSON");
    let pid = status.get("pid").and_then(Value::as_i64).unwrap_or_else(|| panic!("no pid in {status}"));
    let supervised = status.get("supervised").and_then(Value::as_bool).unwrap_or_default();
    supervised.then(|| i32::try_from(pid).expect("a process id"))
}

/// Where standard output stood at the checkpoint: `position` of the description whose `standard_stream` is 1. A program
/// may have given that up.
pub fn stdout_offset(json: &[u8]) -> Option<u64> {
    let image: Value = serde_json::from_slice(json).expect("inspect --json prints JSON");
    find_standard(&image, 1)
}

/// Wherever in the document the descriptions stand.
fn find_standard(value: &Value, number: u64) -> Option<u64> {
    match value {
        Value::Object(fields) if fields.get("standard_stream").and_then(Value::as_u64) == Some(number) => {
            fields.get("position")?.as_u64()
        }
        Value::Object(fields) => fields.values().find_map(|field| find_standard(field, number)),
        Value::Array(items) => items.iter().find_map(|item| find_standard(item, number)),
        _ => None,
    }
}

/// `root` and all its descendants, the root first.
pub fn tree(processes: &[Process], root: i32) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(processes.iter().filter(|process| process.parent == parent).map(|process| process.pid));
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_output_is_found_wherever_it_stands() {
        let json = br#"{"image":{"descriptions":[{"standard_stream":0,"position":3},{"standard_stream":null,"position":9},
            {"standard_stream":1,"position":1234}]}}"#;
        assert_eq!(stdout_offset(json), Some(1234));
    }

    #[test]
    fn a_tree_has_its_root_first() {
        let process = |pid, parent| Process { pid, parent, comm: "x".into(), state: 'S', threads: 1 };
        let all = [process(2, 1), process(3, 2), process(4, 1), process(5, 3), process(6, 2)];
        assert_eq!(tree(&all, 2), [2, 3, 6, 5]);
    }

    #[test]
    fn a_job_without_a_supervisor_has_no_answer_yet() {
        assert_eq!(supervised_pid(br#"{"pid": 7, "supervised": true}"#), Some(7));
        assert_eq!(supervised_pid(br#"{"pid": 7, "supervised": false}"#), None);
    }
}
