//! What /proc/net shows of other sockets: connections that are being made, who has a port, which groups a machine is in.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One line of /proc/net/tcp, tcp6, udp or udp6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Addresses in the form of both families, without an interface.
    pub local: SocketAddrV6,
    pub remote: SocketAddrV6,
    /// TCP_*.
    pub state: u8,
    /// 0 where no process has it.
    pub inode: u64,
}

/// `  sl  local_address rem_address   st tx_queue:rx_queue tr:tm->when retrnsmt   uid  timeout inode …`
pub fn parse(text: &str) -> Vec<Line> {
    text.lines().skip(1).filter_map(line).collect()
}

fn line(text: &str) -> Option<Line> {
    let mut words = text.split_ascii_whitespace().skip(1);
    let (local, remote) = (address(words.next()?)?, address(words.next()?)?);
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let inode = words.nth(5)?.parse().ok()?;
    Some(Line { local, remote, state, inode })
}

/// `0100007F:07E8`, or four such words before the colon: each as the machine reads it.
fn address(text: &str) -> Option<SocketAddrV6> {
    let (host, port) = text.rsplit_once(':')?;
    let word = |at: usize| u32::from_str_radix(host.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let host = match host.len() {
        8 => Ipv4Addr::from(word(0)?).to_ipv6_mapped(),
        32 => Ipv6Addr::from(<[u8; 16]>::try_from([word(0)?, word(8)?, word(16)?, word(24)?].concat()).ok()?),
        _ => return None,
    };
    Some(SocketAddrV6::new(host, u16::from_str_radix(port, 16).ok()?, 0, 0))
}

/// The TCP sockets of this network namespace.
pub fn connections() -> Vec<Line> {
    lines(&["tcp", "tcp6"])
}

fn lines(files: &[&str]) -> Vec<Line> {
    let text = |name: &&str| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    files.iter().flat_map(|name| parse(&text(name))).collect()
}

/// Whether somebody is about to connect to the TCP port: no program has heard of it yet.
pub fn is_being_connected_to(port: u16) -> bool {
    const SYN_RECV: u8 = 3;
    connections().iter().any(|line| line.local.port() == port && line.state == SYN_RECV)
}

/// Whether a connection that has ended (TIME_WAIT) still has the TCP port.
pub fn lingers(port: u16) -> bool {
    const TIME_WAIT: u8 = 6;
    connections().iter().any(|line| line.local.port() == port && line.state == TIME_WAIT)
}

/// Who has the port, as far as that can be known; nothing where it is nobody's.
pub fn holder(protocol: i32, port: u16) -> Option<String> {
    let files = if protocol == libc::IPPROTO_UDP { ["udp", "udp6"] } else { ["tcp", "tcp6"] };
    let mut all = lines(&files);
    all.retain(|line| line.local.port() == port);
    processes_with(&all.iter().map(|line| line.inode).collect()).next().map(|(_, words)| words)
}

/// A process that has the socket, in words.
pub fn process_with(socket: u64) -> Option<String> {
    processes_with(&HashSet::from([socket])).next().map(|(_, words)| words)
}

/// Processes that have one of these sockets: their directory in /proc, and who they are in words.
fn processes_with(sockets: &HashSet<u64>) -> impl Iterator<Item = (PathBuf, String)> {
    let names: HashSet<String> =
        sockets.iter().filter(|inode| **inode != 0).map(|inode| format!("socket:[{inode}]")).collect();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter(|p| p.file_name().to_string_lossy().parse::<u32>().is_ok()).filter_map(move |process| {
        let mut open = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let is_one = |link: PathBuf| link.to_str().is_some_and(|name| names.contains(name));
        if !open.any(|fd| std::fs::read_link(fd.path()).is_ok_and(is_one)) {
            return None;
        }
        let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some((process.path(), format!("process {} ({})", process.file_name().display(), name.trim())))
    })
}

/// Who has a Unix socket bound to the file that is at `at`, by device and inode; as far as that can be known.
pub fn holder_of_file(at: &Path, device: u64, inode: u64) -> Option<String> {
    let text = std::fs::read_to_string("/proc/net/unix").ok()?;
    let is_it =
        |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (device, inode));
    // A relative name may begin where its process is now.
    let is_alike = |(_, path): &(u64, &str)| Path::new(path).file_name() == at.file_name();
    named(&text).filter(is_alike).find_map(|(socket, path)| {
        processes_with(&HashSet::from([socket]))
            .find(|(process, _)| is_it(&process.join("cwd").join(path)))
            .map(|(_, words)| words)
    })
}

/// `Num       RefCount Protocol Flags    Type St Inode Path`: inode and path of those that have one.
pub fn named(text: &str) -> impl Iterator<Item = (u64, &str)> {
    text.lines().skip(1).filter_map(|line| {
        let mut rest = line;
        let mut last = "";
        for _ in 0..7 {
            (last, rest) = rest.trim_start().split_once(' ')?;
        }
        Some((last.parse().ok()?, rest)).filter(|(_, path)| !path.starts_with('@'))
    })
}

/// Groups that this machine has joined, on any interface: number of the interface and address, of either family.
pub fn groups(igmp: &str, igmp6: &str) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut interface = 0;
    for line in igmp.lines().skip(1) {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if line.starts_with('\t') {
            // In the order of the machine, as it was stored.
            let group = u32::from_str_radix(first, 16).map(|group| group.to_ne_bytes().to_vec());
            found.extend(group.ok().map(|group| (interface, group)));
        } else {
            interface = first.parse().unwrap_or(0);
        }
    }
    for line in igmp6.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(interface), Some(_), Some(group)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let digits: Option<Vec<u8>> =
            (0..16).map(|i| u8::from_str_radix(group.get(2 * i..2 * i + 2)?, 16).ok()).collect();
        found.extend(interface.parse().ok().zip(digits));
    }
    found
}

/// The same, of now.
pub fn groups_now() -> Vec<(u32, Vec<u8>)> {
    let text = |name| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    groups(&text("igmp"), &text("igmp6"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    #[test]
    fn who_has_a_port_or_a_file_is_named() {
        let own = std::process::id().to_string();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        assert!(holder(libc::IPPROTO_UDP, udp.local_addr().unwrap().port()).unwrap().contains(&own));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = listener.local_addr().unwrap().port();
        assert!(holder(libc::IPPROTO_TCP, tcp).unwrap().contains(&own));
        drop(listener);
        // Somebody else may have it by now.
        let holder = holder(libc::IPPROTO_TCP, tcp).unwrap_or_default();
        assert!(!holder.contains(&format!("process {own} ")), "it was closed: {holder}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("with a space");
        assert_eq!(named("Num\n0: 2 0 1 1 1 77 a b\n0: 2 0 1 1 1  78\n").collect::<Vec<_>>(), [(77, "a b")]);
        let _listener = UnixListener::bind(&path).unwrap();
        let metadata = path.symlink_metadata().unwrap();
        assert!(holder_of_file(&path, metadata.dev(), metadata.ino()).unwrap().contains(&own));
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let text = "  sl  local_address rem_address   st\n   0: 0100007F:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 564 1 0\n";
        let local = SocketAddrV6::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0x7e8, 0, 0);
        let remote = SocketAddrV6::new(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 0, 0, 0);
        assert_eq!(parse(text), [Line { local, remote, state: 10, inode: 564 }]);
        let loopback = address("00000000000000000000000001000000:0050").unwrap();
        assert_eq!((*loopback.ip(), loopback.port()), (Ipv6Addr::LOCALHOST, 80));
        let igmp = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n4\teth0      :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n";
        let igmp6 = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
        let found = groups(igmp, igmp6);
        assert_eq!(found[0], (4, vec![224, 0, 0, 1]));
        assert_eq!((found[1].0, &found[1].1[..2], found[1].1.len()), (1, &[0xff, 2][..], 16));
    }
}
