//! The eBPF programs of ckptbpf. One file a program family; user space decides which of them it loads.
//!
//! Invariants: every program looks into [`filter`] before it does anything else, so that a process that is not
//! tracked pays one hash lookup; no program changes what the kernel does; what an event program reports is a
//! hint, what an iterator writes is the state at the moment it is read.
#![no_std]
#![no_main]
#![deny(unused, unsafe_op_in_unsafe_fn)]

mod descriptors;
mod faults;
mod filter;
mod iterator;
mod lifecycle;
mod maps;
mod offsets;
mod probes;
mod processes;
mod tasks;
mod timers;
mod vmas;
mod waits;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
