//! Hides where things are in the kernel from those who are told of rows.
//!
//! A key of a row is the address of a kernel object. What it is good for is being equal to another one, or 0: so a number takes its
//! place that is the same for the same address, for as long as there is this core, and says nothing of it (SipHash under a key of
//! the core's own). Addresses would undo the kernel's randomisation of them (KASLR).

use crate::sys::bpf::{FileRow, ProcessRow, SharedObjects, SigActionsRow, TaskRow, VmaRow};
use crate::task::iterators::rows::Rows;
use ckpt_common::TaskSettings;
use std::hash::{BuildHasher, RandomState};

/// The core's own key.
#[derive(Debug, Default)]
pub struct Veil(RandomState);

/// What an address is of: that of one kind is no number of another's, so that nobody finds out one by the other.
#[derive(Debug, Clone, Copy, Hash)]
enum Kind {
    Memory,
    Files,
    Folder,
    Actions,
    Group,
    Policy,
    Filter,
    Semaphores,
    Ports,
    Ring,
    Segments,
    File,
}

impl Veil {
    fn hide_key(&self, kind: Kind, key: &mut u64) {
        if *key != 0 {
            // No object's number is 0.
            *key = self.0.hash_one((kind, *key)) | 1;
        }
    }

    /// Of all rows that have keys. Each field is named, so that a new one is thought of. Of the words of security modules `asked` is
    /// the one that anybody wants to know of.
    pub fn hide(&self, rows: &mut Rows, asked: Option<usize>) {
        let Rows { hosts: _, threads, processes, actions, mappings, descriptors, timers: _, waiting: _ } =
            rows;
        threads.iter_mut().for_each(|thread| self.thread(&mut thread.row, asked));
        processes.iter_mut().for_each(|row| self.process(row));
        for SigActionsRow { tgid: _, count: _, sighand, actions: _ } in actions {
            self.hide_key(Kind::Actions, sighand);
        }
        mappings.iter_mut().for_each(|row| self.mapping(row));
        descriptors.iter_mut().for_each(|row| self.descriptor(row));
    }

    fn thread(&self, row: &mut TaskRow, asked: Option<usize>) {
        let TaskRow { ids: _, objects, signals: _, user: _, settings, keyrings: _, restart: _ } = row;
        let SharedObjects { mm, files, fs, sighand, signal } = objects;
        self.hide_key(Kind::Memory, mm);
        self.hide_key(Kind::Files, files);
        self.hide_key(Kind::Folder, fs);
        self.hide_key(Kind::Actions, sighand);
        self.hide_key(Kind::Group, signal);
        let TaskSettings {
            thread_flags: _,
            memory_policy,
            filter,
            semaphores,
            ports,
            ring,
            security,
            securebits: _,
            port_level: _,
        } = settings;
        self.hide_key(Kind::Policy, memory_policy);
        self.hide_key(Kind::Filter, filter);
        self.hide_key(Kind::Semaphores, semaphores);
        self.hide_key(Kind::Ports, ports);
        self.hide_key(Kind::Ring, ring);
        // Some of these words may be a neighbour's. Of the one that is not, that there is something is all that is asked.
        for (at, word) in security.iter_mut().enumerate() {
            *word = (Some(at) == asked && *word != 0).into();
        }
    }

    fn process(&self, row: &mut ProcessRow) {
        let ProcessRow {
            tgid: _,
            tid: _,
            mm,
            memory: _,
            real: _,
            prof: _,
            virt: _,
            real_armed: _,
            group_stop_count: _,
            flags: _,
            child_subreaper: _,
            memory_flags: _,
            default_flags: _,
            segments,
            futex_mask: _,
            futex_chosen: _,
            key_map: _,
            execute_only_key: _,
            barriers: _,
            unused: _,
        } = row;
        self.hide_key(Kind::Memory, mm);
        self.hide_key(Kind::Segments, segments);
    }

    fn mapping(&self, row: &mut VmaRow) {
        let VmaRow {
            tgid: _,
            tid: _,
            start: _,
            end: _,
            flags: _,
            page_offset: _,
            file,
            inode: _,
            device: _,
            home_node: _,
            policy,
            shared_policies,
        } = row;
        self.hide_key(Kind::File, file);
        self.hide_key(Kind::Policy, policy);
        self.hide_key(Kind::Policy, shared_policies);
    }

    fn descriptor(&self, row: &mut FileRow) {
        let FileRow {
            tgid: _,
            tid: _,
            fd: _,
            flags: _,
            files,
            file,
            position: _,
            inode: _,
            device: _,
            mode: _,
            close_on_exec: _,
            eventfd,
        } = row;
        self.hide_key(Kind::Files, files);
        self.hide_key(Kind::File, file);
        // Of what is no eventfd it may be a part of anything.
        *eventfd = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::iterators::rows::Thread;
    use zerocopy::FromZeros;

    #[test]
    fn what_was_equal_is_equal_and_nothing_else_is_told() {
        let veil = Veil::default();
        let row = |file: u64| {
            let zeroed = FileRow::new_zeroed();
            FileRow { file, files: 0xffff_8880_0000_1000, eventfd: 7, ..zeroed }
        };
        let address = 0xffff_8880_1234_5678;
        let descriptors = vec![row(address), row(address), row(1), row(0)];
        let mappings = vec![VmaRow { file: address, ..VmaRow::new_zeroed() }];
        let mut rows = Rows { descriptors, mappings, ..Rows::default() };
        veil.hide(&mut rows, None);
        let files: Vec<u64> = rows.descriptors.iter().map(|row| row.file).collect();
        assert_eq!((files[0], files[3]), (files[1], 0));
        assert_eq!(files[0], rows.mappings[0].file);
        assert!(files[0] != address && files[2] != files[0] && files[2] != 0);
        assert!(rows.descriptors.iter().all(|row| row.eventfd == 0 && row.files != 0xffff_8880_0000_1000));
        let mut again = Rows { descriptors: vec![row(address)], ..Rows::default() };
        veil.hide(&mut again, None);
        assert_eq!(again.descriptors[0].file, files[0], "the same for as long as there is this core");
        Veil::default().hide(&mut again, None);
        assert_ne!(again.descriptors[0].file, files[0]);
    }

    #[test]
    fn of_what_security_modules_keep_only_the_word_that_is_asked_for_is_told() {
        let told = |asked: Option<usize>| {
            let mut row = TaskRow::new_zeroed();
            row.settings.security = [0xffff_8880_1234_5678; ckpt_common::SECURITY];
            let mut rows = Rows { threads: vec![Thread { row, restart: None }], ..Rows::default() };
            Veil::default().hide(&mut rows, asked);
            rows.threads[0].row.settings.security
        };
        assert_eq!(told(None), [0; ckpt_common::SECURITY]);
        let second = told(Some(1));
        assert_eq!((second[1], second.iter().sum::<u64>()), (1, 1));
    }
}
