//! Memory that processes share, and mappings of every kind.

use ckpt_tests::scenario::{Survival, python_loop, survive};
use ckpt_tests::{Cmd, victim_cmd};

#[test]
fn every_kind_of_mapping() {
    survive(&Survival::of("maps", victim_cmd("maps").args([".", "1000", "3000"])));
}

/// Two processes, one of which drops pages of the shared memory between checkpoints that follow a restart: a delta
/// must know what the chain holds of it.
#[test]
fn shared_memory_goes_on_in_deltas_after_a_restart() {
    let begin = "
import mmap, os, zlib
memory = mmap.mmap(-1, 64 * 4096)
child = os.fork()
if not child:
    n = 0
    while True:
        page = n * 7 % 64
        memory[page * 4096:page * 4096 + 8] = n.to_bytes(8, 'little')
        if n % 3 == 0:
            memory.madvise(mmap.MADV_REMOVE, (n * 5 % 64) * 4096, 4096)
        n += 1
        os.kill(os.getpid(), 19)
model = [0] * 64
";
    let step = "
os.waitpid(child, os.WUNTRACED)
page = i * 7 % 64
model[page] = i
if i % 3 == 0:
    model[i * 5 % 64] = 0
seen = [int.from_bytes(memory[p * 4096:p * 4096 + 8], 'little') for p in range(64)]
assert seen == model, (i, [(p, a, b) for p, (a, b) in enumerate(zip(seen, model)) if a != b])
print(i, zlib.crc32(memory[:]), flush=True)
os.kill(child, 18)";
    let script = format!("{begin}{}os.kill(child, 9)\n", python_loop(700, 0.005, step));
    let program = Cmd::new("/usr/bin/python3").args(["-c", &script]);
    survive(&Survival { rounds: 3, ..Survival::of("shared_deltas", program) });
}

/// Memory of a file without a descriptor: what was written after the checkpoint is taken back, in the file too.
#[test]
fn a_mapped_file_is_written_back() {
    let begin = "
import mmap, zlib
with open('mapped', 'w+b') as file:
    file.truncate(16 * 4096 + 100)
    memory = mmap.mmap(file.fileno(), 0)
";
    let step = "
at = i * 4099 % len(memory)
memory[at] = (memory[at] + i) % 256
print(i, zlib.crc32(memory[:]), flush=True)";
    let script = format!("{begin}{}", python_loop(800, 0.004, step));
    let program = Cmd::new("/usr/bin/python3").args(["-c", &script]);
    survive(&Survival { rounds: 3, ..Survival::of("mapped", program) }.writing("mapped"));
}
