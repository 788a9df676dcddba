//! The verbs that read and prune, on generations as they are.
// A test that cannot go on has failed: helpers may panic as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Output};

use ckptbpf::image::{Codec, GenerationId, GenerationWriter, Header, Kind, PAGE_SIZE, SpaceId, Summary};
use serde_json::Value;

fn ckptbpf(verb: &str, rest: &[&str], path: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptbpf"));
    command.arg(verb).args(rest).arg(path).env_remove("SUDO_UID").output().unwrap()
}

fn json(verb: &str, path: &Path) -> Value {
    let output = ckptbpf(verb, &["--json"], path);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Generation 1 is full, the others are deltas to the one before.
fn chain(count: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for id in 1..=count {
        let parent = Some(id - 1).filter(|parent| *parent > 0).map(GenerationId);
        let header = Header {
            id: GenerationId(id),
            parent,
            job: [7; 16],
            features: vec![],
            created_unix_ns: 1_700_000_000,
        };
        let mut writer = GenerationWriter::create(dir.path(), header, Codec::Lz4, 0).unwrap();
        let page = [u8::try_from(id).unwrap(); PAGE_SIZE];
        writer.put_pages(SpaceId(0), id, &page).unwrap();
        writer.put_zero(SpaceId(0), 100, 3).unwrap();
        let kind = if parent.is_some() { Kind::Delta } else { Kind::Full };
        let summary = Summary { kind: kind as i32, freeze_us: 900 + id, tasks: 2, ..Default::default() };
        writer.commit(b"", summary, || Ok(())).unwrap();
    }
    dir
}

fn damage(dir: &Path, id: u64) {
    let path = dir.join(format!("{id:06}.ckpt"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn list_has_the_fields_of_the_contract_newest_last() {
    let dir = chain(3);
    let list = json("list", dir.path());
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|one| one["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3]);
    let last = &list[2];
    assert_eq!(
        (&last["kind"], &last["parent"], &last["complete"]),
        (&"delta".into(), &2.into(), &true.into())
    );
    assert_eq!((&last["freeze_us"], &last["tasks"], &last["pages"]), (&903.into(), &2.into(), &1.into()));
    assert!(last["time"].as_str().unwrap().starts_with("1970-01-01T"));
    assert_eq!(list[0]["parent"], Value::Null);
    let shown = text(&ckptbpf("list", &[], dir.path()));
    assert!(shown.lines().count() == 4 && shown.contains("complete"), "{shown}");
}

#[test]
fn inspect_shows_the_newest_whole_one_of_a_directory_or_the_one_in_a_file() {
    let dir = chain(3);
    let newest = json("inspect", dir.path());
    assert_eq!((&newest["id"], &newest["chain"]), (&3.into(), &serde_json::json!([3, 2, 1])));
    for field in
        ["format_version", "features", "owner_uid", "processes", "memory", "files", "kind", "freeze_us"]
    {
        assert!(newest.get(field).is_some(), "{field}");
    }
    assert_eq!(json("inspect", &dir.path().join("000001.ckpt"))["kind"], "full");
    std::fs::write(dir.path().join("000003.ckpt"), b"garbage").unwrap();
    let output = ckptbpf("inspect", &[], dir.path());
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output).contains("id: 2") && text(&output).contains("000003.ckpt"), "{}", text(&output));
}

#[test]
fn verify_tells_whole_from_damaged_and_from_what_depends_on_it() {
    let dir = chain(3);
    assert_eq!(ckptbpf("verify", &[], dir.path()).status.code(), Some(0));
    damage(dir.path(), 2);
    let output = ckptbpf("verify", &[], dir.path());
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output);
    assert!(
        shown.contains("000001.ckpt: whole\n") && shown.contains("an ancestor is missing or damaged"),
        "{shown}"
    );
    assert_eq!(ckptbpf("verify", &[], &dir.path().join("000001.ckpt")).status.code(), Some(0));
    assert_eq!(ckptbpf("verify", &[], &dir.path().join("000003.ckpt")).status.code(), Some(1));
}

#[test]
fn prune_keeps_what_it_is_told_and_all_of_it_whole() {
    let dir = chain(6);
    let output = ckptbpf("prune", &["--keep", "2"], dir.path());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("kept 2") && text(&output).contains("deleted 4"), "{}", text(&output));
    let list = json("list", dir.path());
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(
        (&list[0]["id"], &list[0]["kind"], &list[0]["zero_pages"]),
        (&5.into(), &"full".into(), &3.into())
    );
    assert_eq!(ckptbpf("verify", &[], dir.path()).status.code(), Some(0));
    // Nobody is left in the record as running there.
    assert_eq!(ckptbpf("prune", &[], dir.path()).status.code(), Some(0));
}

#[test]
fn prune_keeps_out_of_a_directory_that_is_being_written() {
    let dir = chain(6);
    let lock = std::fs::File::create(dir.path().join("lock")).unwrap();
    lock.try_lock().unwrap();
    let output = ckptbpf("prune", &["--keep", "1"], dir.path());
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output).contains("is being written by"), "{}", text(&output));
    assert_eq!(json("list", dir.path()).as_array().unwrap().len(), 6);
}
