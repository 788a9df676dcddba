use super::*;
use crate::job::lease::{Claim, Lease, Purpose};
use crate::job::options::JobOptions;
use crate::job::pointer::{Names, keep};
use crate::job::record::RecordedOptions;
use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::sync::Arc;

/// A job with a checkpoint, as far as its directory tells; its pointer.
fn job(above: &Path, id: &str) -> PathBuf {
    let names = Names::new(OsStr::new("./count"), id);
    let dir = Arc::new(JobDir::create(&above.join(names.dir()), &FsIds::current()).unwrap());
    let given = JobOptions { dmtcp: Some("7779".into()), ..Default::default() };
    let options = RecordedOptions::merged(&given, None);
    let purpose = Purpose::Launch { new: false };
    let claim = Claim { purpose, take_over: false, options, argv: vec!["./count".into()] };
    let lease = Lease::claim(&dir, claim).unwrap().lease;
    fs::write(dir.path().join("000001.ckpt"), "").unwrap();
    keep::keep(&lease);
    above.join(names.pointer())
}

fn found(files: &[&Path]) -> Result<PathBuf, String> {
    let files: Vec<PathBuf> = files.iter().map(|file| file.to_path_buf()).collect();
    find(&files, &FsIds::current()).map(|found| found.0).map_err(|error| error.to_string())
}

fn is_refused(files: &[&Path], words: &str) {
    let error = found(files).unwrap_err();
    assert!(error.contains(words), "{error}");
}

#[test]
fn pointers_lead_to_one_directory_also_when_they_were_moved() {
    let base = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| base.path().join(name));
    fs::create_dir(&first).unwrap();
    let pointer = job(&first, "0123456789abcdef");
    let dir = first.join(".ckpt_count_0123456789abcdef");
    assert_eq!(found(&[&pointer]), Ok(dir.clone()));
    let copy = base.path().join("copy.dmtcp");
    fs::copy(&pointer, &copy).unwrap();
    assert_eq!(found(&[&pointer, &copy]), Ok(dir.clone()), "one job");
    assert_eq!(fs::canonicalize(found(&[&copy]).unwrap()).unwrap(), fs::canonicalize(&dir).unwrap());
    fs::rename(&first, &second).unwrap();
    let moved = second.join("ckpt_count_0123456789abcdef.dmtcp");
    assert_eq!(found(&[&moved]), Ok(second.join(".ckpt_count_0123456789abcdef")));
    is_refused(&[&copy], "its checkpoints are gone");
    let (_, said) = find(&[copy, moved], &FsIds::current()).unwrap();
    assert!(said.len() == 1 && said[0].contains("copy.dmtcp"), "{said:?}");
}

/// Each may have gone on by itself: which one is meant is not guessed.
#[test]
fn a_directory_and_its_copy_are_two() {
    let base = tempfile::tempdir().unwrap();
    let pointer = job(base.path(), "0123456789abcdef");
    let (of, dir) = (pointer.file_name().unwrap(), ".ckpt_count_0123456789abcdef");
    let above = base.path().join("copy");
    fs::create_dir_all(above.join(dir)).unwrap();
    for entry in fs::read_dir(base.path().join(dir)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), above.join(dir).join(entry.file_name())).unwrap();
    }
    let copy = above.join(of);
    fs::copy(&pointer, &copy).unwrap();
    assert_eq!(found(&[&copy]), Ok(above.join(dir)));
    is_refused(&[&pointer, &copy], "or copies of one");
}

#[test]
fn several_jobs_are_named_and_another_one_is_not_taken() {
    let base = tempfile::tempdir().unwrap();
    let pointers = ["0123456789abcdef", "fedcba9876543210"].map(|id| job(base.path(), id));
    is_refused(&[&pointers[0], &pointers[1]], "fedcba9876543210.dmtcp; name one");
    let dirs = [".ckpt_count_0123456789abcdef", ".ckpt_count_fedcba9876543210"];
    let dirs = dirs.map(|name| base.path().join(name));
    fs::remove_dir_all(&dirs[0]).unwrap();
    fs::rename(&dirs[1], &dirs[0]).unwrap();
    is_refused(&[&pointers[0]], "the checkpoints of another job");
}

#[test]
fn where_the_record_is_lost_the_checkpoints_say_whose_they_are() {
    use crate::image::{Codec, GenerationId, GenerationWriter, Header, Summary};
    let base = tempfile::tempdir().unwrap();
    let pointer = job(base.path(), "0123456789abcdef");
    let dir = base.path().join(".ckpt_count_0123456789abcdef");
    fs::remove_file(dir.join("job.json")).unwrap();
    is_refused(&[&pointer], "its job.json is lost");
    fs::remove_file(dir.join("000001.ckpt")).unwrap();
    let said = Pointer::parse(&fs::read(&pointer).unwrap()).unwrap().job;
    let own = u128::from_str_radix(&said.replace('-', ""), 16).unwrap();
    let make = |id: u64, job: u128| {
        let job = job.to_be_bytes();
        let header = Header { id: GenerationId(id), parent: None, job, features: vec![], created_unix_ns: 0 };
        let writer = GenerationWriter::create(&dir, header, Codec::None, 0).unwrap();
        writer.commit(b"", Summary::default(), || Ok(())).unwrap();
    };
    make(1, own);
    assert_eq!(found(&[&pointer]), Ok(dir.clone()));
    make(2, !own);
    is_refused(&[&pointer], "the checkpoints of another job");
}

#[test]
fn what_is_no_pointer_is_named() {
    let base = tempfile::tempdir().unwrap();
    let [file, link, fifo] = ["x.dmtcp", "link.dmtcp", "fifo.dmtcp"].map(|name| base.path().join(name));
    is_refused(&[&file], "there is no such file");
    is_refused(&[], "there is no such file");
    for (bytes, words) in [
        (b"DMTCP_CHECKPOINT_IMAGE_v2.0\n".as_slice(), "an image of DMTCP itself"),
        (b"".as_slice(), "no checkpoint of ckptbpf"),
        ([b'\n'; 1 << 16].as_slice(), "no checkpoint of ckptbpf"),
    ] {
        fs::write(&file, bytes).unwrap();
        is_refused(&[&file], words);
    }
    symlink(&file, &link).unwrap();
    is_refused(&[&link], "a symbolic link");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    is_refused(&[&fifo], "no checkpoint of ckptbpf");
    is_refused(&[base.path()], "no checkpoint of ckptbpf");
}
