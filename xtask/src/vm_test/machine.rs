//! A virtual machine that runs: QEMU, and what it prints.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::share::Share;

/// The processor with everything that QEMU can emulate.
pub const WHOLE: &str = "max";
/// In MiB.
const MEMORY: &str = "1536";
/// What no machine takes from its start to its verdict, however much it prints: the longest ones take a quarter of that.
pub const LONGEST: Duration = Duration::from_secs(3600);

/// What a machine is started with.
pub struct Machine<'a> {
    pub vmlinux: &'a Path,
    pub initrd: &'a Path,
    /// What `-cpu` takes.
    pub processor: &'a str,
    /// Raw images with a file system each, /dev/vda first.
    pub disks: &'a [&'a Path],
    /// What QEMU is told beside.
    pub devices: &'a [String],
    /// A folder that it may mount.
    pub share: Option<&'a Share>,
    /// `NAME=VALUE`, which scripts find in /proc/cmdline as `vm.NAME=VALUE`.
    pub words: &'a [(&'a str, String)],
}

impl<'a> Machine<'a> {
    pub fn new(vmlinux: &'a Path, initrd: &'a Path) -> Self {
        Self { vmlinux, initrd, processor: WHOLE, disks: &[], devices: &[], share: None, words: &[] }
    }

    fn qemu(&self, console: &str) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        // The processor is emulated: unmodified kernels do not run everywhere where there is a /dev/kvm.
        // One thread runs all of its processors: with one each, a kernel that patches its own code (a tracepoint that is attached)
        // may be met in the midst of that.
        command.args(["-accel", "tcg,thread=single", "-M", "pc", "-smp", "2", "-m", MEMORY]);
        command.args(["-cpu", self.processor, "-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-serial", console]);
        command.arg("-kernel").arg(self.vmlinux).arg("-initrd").arg(self.initrd);
        for disk in self.disks {
            // This machine loses no power: what reaches QEMU is kept, whatever becomes of QEMU.
            let file = format!("file={},format=raw,if=virtio,cache=unsafe", disk.display());
            command.arg("-drive").arg(file);
        }
        command.args(self.devices);
        if let Some(share) = self.share {
            // Who serves it reads and writes the machine's memory.
            command.args(["-object", &format!("memory-backend-memfd,id=memory,size={MEMORY}M,share=on")]);
            command.args(["-machine", "memory-backend=memory"]);
            command.args(["-chardev", &format!("socket,id=share,path={}", share.socket.display())]);
            command.args(["-device", &format!("vhost-user-fs-pci,chardev=share,tag={}", share.tag)]);
        }
        let words: String = self.words.iter().map(|(name, value)| format!(" vm.{name}={value}")).collect();
        // Warnings and worse are printed (`guest.rs` looks for them), and nothing else. A processor that had no time here for half a
        // minute is not stuck: that is a `BUG:` after two.
        let words = format!("console=ttyS0 panic=-1 loglevel=5 watchdog_thresh=60{words}");
        command.arg("-append").arg(words);
        command
    }

    /// On this terminal, until it ends.
    pub fn on_this_terminal(&self) -> Result<()> {
        let status = self.qemu("mon:stdio").status().context("starting qemu-system-x86_64")?;
        match status.code() {
            Some(code) if code % 2 == 1 => Ok(()),
            _ => bail!("the machine has ended without a verdict: {status}"),
        }
    }

    /// Starts it; what it prints goes to the file `console`, too.
    pub fn start(&self, console: &Path) -> Result<Running> {
        Running::of(self.qemu("stdio"), console, LONGEST)
    }
}

pub struct Running {
    child: Watched,
    lines: Receiver<String>,
    log: File,
    /// When it has to be over.
    end: Instant,
}

pub enum Next {
    Line(String),
    /// Nothing was printed for as long as was waited.
    Silence,
    /// It still runs, and no machine takes so long.
    Late,
    /// It has ended, and all that it has printed was seen.
    End,
}

impl Running {
    /// Starts it, with its output at `console`, too.
    pub fn of(mut command: Command, console: &Path, at_most: Duration) -> Result<Self> {
        let end = Instant::now() + at_most;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = Watched(command.spawn().context("starting qemu-system-x86_64")?);
        let output = child.0.stdout.take().context("what the machine prints")?;
        let log = File::create(console).with_context(|| console.display().to_string())?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines, log, end })
    }

    pub fn next(&mut self, at_most: Duration) -> Result<Next> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Next::Late);
        }
        Ok(match self.lines.recv_timeout(at_most.min(left)) {
            Ok(line) => {
                writeln!(self.log, "{line}")?;
                Next::Line(line)
            }
            Err(RecvTimeoutError::Timeout) if at_most < left => Next::Silence,
            Err(RecvTimeoutError::Timeout) => Next::Late,
            Err(RecvTimeoutError::Disconnected) => Next::End,
        })
    }

    /// As if its cord were pulled: whatever it has not written to a disk is gone.
    pub fn cut_off(&mut self) -> Result<()> {
        Ok(self.child.0.kill()?)
    }

    pub fn status(&mut self) -> Result<ExitStatus> {
        Ok(self.child.0.wait()?)
    }
}

/// Ends with its watcher.
pub struct Watched(pub Child);

impl Drop for Watched {
    fn drop(&mut self) {
        // It has ended already, mostly.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until somebody listens at a socket on this machine.
pub fn wait_for_socket(path: &Path) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let begin = Instant::now();
    while !path.exists() {
        ensure!(begin.elapsed() < PATIENCE, "{}: nobody listens there", path.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Until it ends, or nobody waits any longer.
    fn last(line: &str, at_most: Duration) -> Next {
        let console = std::env::temp_dir().join(format!("ckptbpf-console-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let mut running = Running::of(command, &console, at_most).unwrap();
        let next = loop {
            match running.next(Duration::from_secs(60)).unwrap() {
                Next::Line(_) => {}
                other => break other,
            }
        };
        drop(running);
        std::fs::remove_file(&console).unwrap();
        next
    }

    #[test]
    fn a_machine_that_prints_for_ever_is_late() {
        assert!(matches!(last("while :; do echo so; done", Duration::from_millis(300)), Next::Late));
        assert!(matches!(last("exec sleep 1000", Duration::from_millis(300)), Next::Late));
        assert!(matches!(last("echo so", Duration::from_secs(60)), Next::End));
    }

    #[test]
    fn the_kernel_prints_its_warnings() {
        let command = Machine::new(Path::new("vmlinux"), Path::new("initrd")).qemu("stdio");
        let all: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let words = all.iter().find(|word| word.starts_with("console=")).unwrap();
        assert!(words.split(' ').any(|word| word == "loglevel=5"), "{words}");
        assert!(!words.split(' ').any(|word| word == "quiet"), "{words}");
    }
}
