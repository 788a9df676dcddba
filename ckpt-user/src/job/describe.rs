//! What `inspect` shows of a checkpoint's metadata, as JSON for people and programs. Fields are added, never renamed.

use serde_json::{Map, Value, json};
use std::time::Duration;

use crate::machine::Baseline;
use crate::memory::vma::Kind;
use crate::object::Description;
use crate::record::{BadImage, Image, Process, Thread};

/// `tasks`, `memory`, `files`, `shared_memory` and `machine` of a generation's metadata.
///
/// # Errors
/// The metadata cannot be read. What it says need not be so.
pub fn describe(metadata: &[u8]) -> Result<Value, BadImage> {
    let image = Image::read(metadata)?;
    let mut fields = Map::new();
    if let Some(machine) = &image.machine {
        let machine = json!({
            "host": machine.host, "kernel": machine.kernel, "vdso": format!("{:016x}", machine.vdso),
            "cpu_features": machine.cpu_features.len(),
            "cpu_baseline": machine.baseline().map(Baseline::name),
        });
        fields.insert("machine".into(), machine);
    }
    let list = |values: Vec<Value>| Value::Array(values);
    // The counts of the summary are called `tasks`, too: those are a number, these say which.
    fields.insert("processes".into(), list(image.processes.iter().map(process).collect()));
    fields.insert("memory".into(), list(image.processes.iter().map(memory).collect()));
    let open = open_as(&image);
    let files = image.descriptions.iter().zip(&open).map(|(description, open)| file(description, open));
    fields.insert("files".into(), list(files.collect()));
    let shared =
        image.objects.iter().map(|object| json!({ "space": object.space, "bytes": object.size })).collect();
    fields.insert("shared_memory".into(), list(shared));
    Ok(Value::Object(fields))
}

fn process(process: &Process) -> Value {
    json!({
        "pid": process.pid,
        "parent": process.parent,
        "process_group": process.process_group,
        "session": process.session,
        "executable": process.layout.as_ref().and_then(|layout| layout.executable.as_ref()).map(|file| text(&file.path)),
        "cpu_time_s": Duration::from_nanos(process.cpu_time).as_secs_f64(),
        "stopped_by": (process.job_stop != 0).then_some(process.job_stop),
        "threads": process.threads.iter().map(thread).collect::<Vec<_>>(),
    })
}

fn thread(thread: &Thread) -> Value {
    let credentials = thread.credentials.as_ref();
    json!({
        "tid": thread.tid,
        "name": text(&thread.name),
        "uid": credentials.and_then(|ids| ids.uids.first().copied()),
        "gid": credentials.and_then(|ids| ids.gids.first().copied()),
        "ended": thread.ended,
    })
}

/// Bytes of address space by kind of mapping, and the files that are mapped.
fn memory(process: &Process) -> Value {
    let bytes = |wanted: &[Kind]| {
        let of = process
            .mappings
            .iter()
            .filter(|vma| Kind::try_from(vma.kind).is_ok_and(|kind| wanted.contains(&kind)));
        of.fold(0u64, |sum, vma| sum.saturating_add(vma.end.saturating_sub(vma.start)))
    };
    let mut files: Vec<String> =
        process.mappings.iter().filter_map(|vma| vma.file.as_ref()).map(|file| text(&file.path)).collect();
    files.sort_unstable();
    files.dedup();
    let policies = process.mappings.iter().filter_map(|vma| {
        let policy = vma.policy.as_ref()?;
        Some(json!({ "start": vma.start, "mode": policy.mode, "home_node": policy.home }))
    });
    json!({
        "pid": process.pid,
        "mappings": process.mappings.len(),
        "anonymous_bytes": bytes(&[Kind::Anonymous]),
        "file_bytes": bytes(&[Kind::File]),
        "shared_bytes": bytes(&[Kind::SharedObject]),
        "files": files,
        "policies": policies.collect::<Vec<_>>(),
    })
}

/// The descriptors of each description, `process:number`.
fn open_as(image: &Image) -> Vec<Vec<String>> {
    let mut open = vec![Vec::new(); image.descriptions.len()];
    for (process, fd) in image.processes.iter().flat_map(|p| p.descriptors.iter().map(move |fd| (p, fd))) {
        if let Some(open) = open.get_mut(fd.description as usize) {
            open.push(format!("{}:{}", process.pid, fd.number));
        }
    }
    open
}

/// An open file description and the descriptors that refer to it.
fn file(description: &Description, open: &[String]) -> Value {
    let mut fields = Map::new();
    // An object is serialised as {"Kind": {fields}}: whatever kinds there are, they are told apart by that.
    if let Ok(Value::Object(object)) = serde_json::to_value(&description.object)
        && let Some((kind, record)) = object.iter().next()
    {
        fields.insert("kind".into(), kind.to_lowercase().into());
        let path: Option<Vec<u8>> =
            record.get("path").and_then(|path| serde_json::from_value(path.clone()).ok());
        if let Some(path) = path {
            fields.insert("path".into(), text(&path).into());
        }
        if let Some(size) = record.get("size") {
            fields.insert("bytes".into(), size.clone());
        }
    }
    fields.insert("position".into(), description.position.into());
    fields.insert("flags".into(), format!("{:#o}", description.flags).into());
    fields.insert("standard_stream".into(), description.standard.into());
    fields.insert("open_as".into(), open.into());
    Value::Object(fields)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::vma::Vma;
    use crate::object::{Object, file::FileRecord, table::Descriptor};
    use prost::Message;

    #[test]
    fn tasks_memory_and_files_are_shown() {
        let vma = Vma { start: 0x1000, end: 0x3000, kind: Kind::Anonymous as i32, ..Default::default() };
        let descriptor = Descriptor { number: 1, description: 0, ..Default::default() };
        let process = Process {
            pid: 7,
            threads: vec![Thread { tid: 7, name: b"count".to_vec(), ..Default::default() }],
            mappings: vec![vma],
            descriptors: vec![descriptor],
            ..Default::default()
        };
        let object = Some(Object::File(FileRecord { path: b"/tmp/out".to_vec(), ..Default::default() }));
        let description = Description { position: 5, object, ..Default::default() };
        let image = Image { processes: vec![process], descriptions: vec![description], ..Default::default() };
        let value = describe(&image.encode_to_vec()).unwrap();
        assert_eq!(value["processes"][0]["threads"][0]["name"], "count");
        assert_eq!(value["memory"][0]["anonymous_bytes"], 0x2000);
        assert_eq!(
            (&value["files"][0]["path"], &value["files"][0]["kind"]),
            (&"/tmp/out".into(), &"file".into())
        );
        assert_eq!(value["files"][0]["open_as"][0], "7:1");
    }

    #[test]
    fn garbage_is_an_error_and_nothing_is_little() {
        assert!(describe(&[0xff; 40]).is_err());
        assert_eq!(describe(&[]).unwrap()["files"], json!([]));
    }
}
