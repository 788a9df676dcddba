//! What clients of the daemon send, what front and worker say to each other, and what a core tells its workers.

use crate::daemon::asked::Asked;
use crate::daemon::link::{Admitted, Go, Heir, Run, Secret, Started, Word, understood};
use crate::daemon::wire::{self, BUILD, Hello, Message, NextId, QUERY, Refusal, WORKER};
use crate::task::iterators::lessons::Lessons;
use crate::task::iterators::rows::{Rows, Waiting};
use std::io::{Seek, Write};

pub mod daemon_request {
    use super::*;

    pub fn run(bytes: &[u8]) {
        if let Ok(message) = Message::parse(bytes) {
            assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let hello = |wants| Message::Hello(Hello { wants, build: BUILD }).to_bytes();
        let next = Message::NextId(NextId { id: 4711, reserved: 0 }).to_bytes();
        vec![hello(QUERY), hello(WORKER), next, Message::from(Refusal::Workers).to_bytes()]
    }
}

pub mod front_message {
    use super::*;

    pub fn run(bytes: &[u8]) {
        if let Ok(word) = understood(bytes) {
            assert_eq!(understood(&word.to_bytes()).ok(), Some(word));
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let words = [
            Word::Challenge(Secret { pid: 17, address: 1 << 46 }),
            Word::Answer(vec![7; 16]),
            Word::Go(Go { streams: 7, place: b"/run/d".to_vec(), ..Go::default() }),
            Word::Go(Go { heir: Some(Heir { dir: b"/d".to_vec(), ..Heir::default() }), ..Go::default() }),
            Word::Run(Run { kept: 1 << 9 }),
            Word::Started(Started { keeper: 41, strangers: vec![1, 2, 3], root: 42 }),
            Word::Ended(256),
            Word::Over(true),
            Word::Admit(42),
            Word::Admitted(Admitted { refused: "it does not stop".to_owned(), not_yet: true }),
        ];
        words.iter().map(Word::to_bytes).chain([Message::from(Refusal::Confined).to_bytes()]).collect()
    }
}

pub mod front_command_line {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let written = tempfile(bytes);
        if let Ok(asked) = written.and_then(|file| Asked::read(file.into())) {
            let again = asked.written().and_then(Asked::read);
            assert_eq!(again.ok(), Some(asked));
        }
    }

    fn tempfile(bytes: &[u8]) -> std::io::Result<std::fs::File> {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let mut file = std::fs::File::from(nix::sys::memfd::memfd_create(c"ckptbpf-fuzz", flags)?);
        file.write_all(bytes)?;
        file.rewind()?;
        Ok(file)
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let words = ["ckptbpf", "launch", "-i", "10", "--", "./count"].map(Into::into).to_vec();
        let asked = Asked { words, variables: vec![("CKPTBPF_DIR", "/scratch/me".into())] };
        let bytes = asked.written().map(std::fs::File::from).and_then(|mut file| {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut bytes).map(|_| bytes)
        });
        vec![bytes.unwrap_or_default(), wire::join(wire::kind::OF_LINKS, b"")]
    }
}

pub mod told_rows {
    use super::*;

    pub fn run(bytes: &[u8]) {
        if let Some(rows) = Rows::parse(bytes) {
            assert!(Rows::parse(&rows.to_bytes()).is_some());
        }
        if let Some(lessons) = Lessons::parse(bytes) {
            assert!(Lessons::parse(&lessons.to_bytes()).is_some());
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let waiting = vec![Waiting { tid: 7, tgid: 7, number: 232, switches: 3, expires: 1 << 40 }];
        let rows = Rows { hosts: vec![7, 0], waiting, ..Rows::default() };
        // Bits 1, 2 and 4, word 0; `rd` alone.
        vec![rows.to_bytes(), b"\x0a\x06\x08\x06\x10\x04\x18\x00\x12\x02rd".to_vec()]
    }
}
