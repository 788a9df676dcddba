//! What setsockopt(2) sets of a socket: every option that can be read back and set again.
//!
//! Stored is what differs from a new socket. A restart sets that, and compares all. An image of a user's sets what that user
//! could set: the kernel is asked without root's rights to the network.

use super::new_sockets::{self, NewSockets};
use crate::sys::caps::NoNetworkRights;
use crate::sys::socket;
use std::io;
use std::os::fd::OwnedFd;

/// An option as getsockopt(2) gives it.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SocketOption {
    #[prost(int32, tag = "1")]
    pub name: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
    /// SOL_SOCKET, or the protocol (SOL_IP, SOL_TCP and so on).
    #[prost(int32, tag = "3")]
    pub level: i32,
}

/// What decides which options a socket has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// AF_*.
    pub family: i32,
    /// SOCK_*.
    pub kind: i32,
    /// IPPROTO_*, 0 of Unix sockets.
    pub protocol: i32,
    /// A TCP socket that has another end.
    pub connected: bool,
}

/// No option takes more.
pub const LONGEST: usize = 64;

/// asm-generic/socket.h, names that libc lacks.
mod so {
    pub const BUSY_POLL: i32 = 46;
    pub const TXTIME: i32 = 61;
    pub const PREFER_BUSY_POLL: i32 = 69;
    pub const BUSY_POLL_BUDGET: i32 = 70;
    pub const BUF_LOCK: i32 = 72;
    pub const RESERVE_MEM: i32 = 73;
    pub const TXREHASH: i32 = 74;
    pub const RCVMARK: i32 = 75;
    /// Linux 6.5.
    pub const PASSPIDFD: i32 = 76;
    pub const RCVPRIORITY: i32 = 82;
    pub const PASSRIGHTS: i32 = 83;
    pub const INQ: i32 = 84;
    /// To read; to set, it is SO_ATTACH_FILTER.
    pub const GET_FILTER: i32 = 26;
    /// SO_TIMESTAMPNS_OLD and SO_TIMESTAMPING_OLD are in libc under the plain names.
    pub const TIMESTAMP_NEW: i32 = 63;
    pub const TIMESTAMPNS_NEW: i32 = 64;
    pub const WIFI_STATUS: i32 = 41;
    pub const NOFCS: i32 = 43;
    pub const SELECT_ERR_QUEUE: i32 = 45;
}
pub use so::PASSPIDFD;

/// Level SOL_SOCKET, in the order in which they are set: what the size of a buffer depends on comes before it, and whether
/// the program has chosen the size after.
const SOCKET: &[i32] = &[
    libc::SO_BINDTODEVICE,
    libc::SO_REUSEADDR,
    libc::SO_REUSEPORT,
    libc::SO_DEBUG,
    libc::SO_DONTROUTE,
    libc::SO_BROADCAST,
    libc::SO_KEEPALIVE,
    libc::SO_OOBINLINE,
    libc::SO_NO_CHECK,
    libc::SO_LINGER,
    libc::SO_PASSCRED,
    libc::SO_PASSSEC,
    so::PASSPIDFD,
    so::PASSRIGHTS,
    so::INQ,
    libc::SO_RCVLOWAT,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    so::BUF_LOCK,
    libc::SO_TIMESTAMP,
    libc::SO_TIMESTAMPNS,
    so::TIMESTAMP_NEW,
    so::TIMESTAMPNS_NEW,
    libc::SO_MARK,
    libc::SO_RXQ_OVFL,
    so::WIFI_STATUS,
    libc::SO_PEEK_OFF,
    so::NOFCS,
    so::SELECT_ERR_QUEUE,
    so::BUSY_POLL,
    libc::SO_MAX_PACING_RATE,
    libc::SO_INCOMING_CPU,
    libc::SO_ZEROCOPY,
    so::TXTIME,
    so::PREFER_BUSY_POLL,
    so::BUSY_POLL_BUDGET,
    so::RESERVE_MEM,
    so::TXREHASH,
    so::RCVMARK,
    so::RCVPRIORITY,
];

/// IP_TOS sets it too.
const AFTER_ALL: &[i32] = &[libc::SO_PRIORITY];

/// Level IPPROTO_IP (linux/in.h).
const IP: &[i32] = &[
    libc::IP_TOS,
    libc::IP_TTL,
    libc::IP_RECVOPTS,
    libc::IP_RETOPTS,
    libc::IP_PKTINFO,
    libc::IP_MTU_DISCOVER,
    libc::IP_RECVERR,
    libc::IP_RECVTTL,
    libc::IP_RECVTOS,
    libc::IP_FREEBIND,
    18, // IP_PASSSEC
    libc::IP_TRANSPARENT,
    libc::IP_RECVORIGDSTADDR,
    21, // IP_MINTTL
    23, // IP_CHECKSUM
    libc::IP_BIND_ADDRESS_NO_PORT,
    25, // IP_RECVFRAGSIZE
    26, // IP_RECVERR_RFC4884
    libc::IP_MULTICAST_IF,
    libc::IP_MULTICAST_TTL,
    libc::IP_MULTICAST_LOOP,
    libc::IP_MULTICAST_ALL,
    50, // IP_UNICAST_IF
    51, // IP_LOCAL_PORT_RANGE
];

/// Level IPPROTO_IPV6 (linux/in6.h).
const IPV6: &[i32] = &[
    2,  // IPV6_2292PKTINFO
    3,  // IPV6_2292HOPOPTS
    4,  // IPV6_2292DSTOPTS
    5,  // IPV6_2292RTHDR
    8,  // IPV6_2292HOPLIMIT
    11, // IPV6_FLOWINFO
    libc::IPV6_UNICAST_HOPS,
    libc::IPV6_MULTICAST_IF,
    libc::IPV6_MULTICAST_HOPS,
    libc::IPV6_MULTICAST_LOOP,
    libc::IPV6_MTU_DISCOVER,
    libc::IPV6_RECVERR,
    libc::IPV6_V6ONLY,
    libc::IPV6_MULTICAST_ALL,
    30, // IPV6_ROUTER_ALERT_ISOLATE
    31, // IPV6_RECVERR_RFC4884
    33, // IPV6_FLOWINFO_SEND
    libc::IPV6_RECVPKTINFO,
    libc::IPV6_RECVHOPLIMIT,
    libc::IPV6_RECVHOPOPTS,
    libc::IPV6_RECVRTHDR,
    libc::IPV6_RECVDSTOPTS,
    60, // IPV6_RECVPATHMTU
    libc::IPV6_DONTFRAG,
    libc::IPV6_RECVTCLASS,
    libc::IPV6_TCLASS,
    70, // IPV6_AUTOFLOWLABEL
    72, // IPV6_ADDR_PREFERENCES
    73, // IPV6_MINHOPCOUNT
    74, // IPV6_RECVORIGDSTADDR
    75, // IPV6_TRANSPARENT
    76, // IPV6_UNICAST_IF
    77, // IPV6_RECVFRAGSIZE
    78, // IPV6_FREEBIND
];

/// Level IPPROTO_TCP (linux/tcp.h).
const TCP: &[i32] = &[
    libc::TCP_NODELAY,
    libc::TCP_MAXSEG,
    libc::TCP_CORK,
    libc::TCP_KEEPIDLE,
    libc::TCP_KEEPINTVL,
    libc::TCP_KEEPCNT,
    libc::TCP_SYNCNT,
    libc::TCP_LINGER2,
    libc::TCP_DEFER_ACCEPT,
    libc::TCP_WINDOW_CLAMP,
    libc::TCP_QUICKACK,
    libc::TCP_CONGESTION,
    16, // TCP_THIN_LINEAR_TIMEOUTS
    17, // TCP_THIN_DUPACK
    libc::TCP_USER_TIMEOUT,
    libc::TCP_FASTOPEN,
    25, // TCP_NOTSENT_LOWAT
    27, // TCP_SAVE_SYN
    30, // TCP_FASTOPEN_CONNECT
    34, // TCP_FASTOPEN_NO_COOKIE
    36, // TCP_INQ
    37, // TCP_TX_DELAY
    44, // TCP_RTO_MAX_MS
    45, // TCP_RTO_MIN_US
    46, // TCP_DELACK_MAX_US
];

/// Level IPPROTO_UDP (linux/udp.h).
const UDP: &[i32] = &[
    1,   // UDP_CORK
    100, // UDP_ENCAP
    101, // UDP_NO_CHECK6_TX
    102, // UDP_NO_CHECK6_RX
    libc::UDP_SEGMENT,
    libc::UDP_GRO,
];

/// Of a TCP connection, what the kernel itself sets, as it is accepted or as it goes: of what a program has set nothing can be
/// read. Those of multicast, and of families, mean nothing to it.
const LIVELY: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_INCOMING_CPU),
    (libc::SOL_IP, libc::IP_MULTICAST_TTL),
    (libc::SOL_IPV6, libc::IPV6_MULTICAST_IF),
    (libc::SOL_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::SOL_IPV6, libc::IPV6_V6ONLY),
    (libc::SOL_TCP, libc::TCP_MAXSEG),
    (libc::SOL_TCP, libc::TCP_WINDOW_CLAMP),
    (libc::SOL_TCP, libc::TCP_QUICKACK),
];

/// Options that are read, and refused by name where they are set: a restart could not set them.
const REFUSED: &[(i32, i32, &str)] = &[
    (libc::SOL_SOCKET, so::GET_FILTER, "a filter (SO_ATTACH_FILTER)"),
    (libc::SOL_SOCKET, libc::SO_LOCK_FILTER, "a locked filter (SO_LOCK_FILTER)"),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPING, "timestamps of packets (SO_TIMESTAMPING)"),
    (libc::SOL_IP, 4, "options of its packets (IP_OPTIONS)"),
    (libc::SOL_IPV6, 54, "options of its packets (IPV6_HOPOPTS)"),
    (libc::SOL_IPV6, 55, "options of its packets (IPV6_RTHDRDSTOPTS)"),
    (libc::SOL_IPV6, 57, "options of its packets (IPV6_RTHDR)"),
    (libc::SOL_IPV6, 59, "options of its packets (IPV6_DSTOPTS)"),
    (libc::SOL_TCP, libc::TCP_REPAIR, "a queue under repair (TCP_REPAIR)"),
    (libc::SOL_TCP, 31, "a protocol above it (TCP_ULP)"),
];

impl Kind {
    /// Of a TCP connection.
    pub fn connected(family: i32) -> Self {
        Self { family, kind: libc::SOCK_STREAM, protocol: libc::IPPROTO_TCP, connected: true }
    }

    /// Levels and names, in the order in which they are set.
    pub fn known(self) -> impl Iterator<Item = (i32, i32)> {
        let Self { family, protocol, connected, .. } = self;
        let is_inet = family == libc::AF_INET || family == libc::AF_INET6;
        let some = move |applies: bool, level: i32, names: &'static [i32]| {
            let names = if applies { names } else { &[] };
            names.iter().map(move |&name| (level, name))
        };
        some(true, libc::SOL_SOCKET, SOCKET)
            .chain(some(is_inet, libc::SOL_IP, IP))
            .chain(some(family == libc::AF_INET6, libc::SOL_IPV6, IPV6))
            .chain(some(protocol == libc::IPPROTO_TCP, libc::SOL_TCP, TCP))
            .chain(some(protocol == libc::IPPROTO_UDP, libc::SOL_UDP, UDP))
            .chain(some(true, libc::SOL_SOCKET, AFTER_ALL))
            .filter(move |known| !(connected && LIVELY.contains(known)))
    }

    /// Whether an image may hold it.
    pub fn takes(self, option: &SocketOption) -> bool {
        option.value.len() <= LONGEST && self.known().any(|known| known == (option.level, option.name))
    }
}

/// Not one of this kernel, or of this kind of socket.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP))
}

/// What differs from a new socket.
///
/// # Errors
/// The option that a restart could not set, or that cannot be read.
pub fn capture(fd: &OwnedFd, kind: Kind, new: &NewSockets) -> Result<Vec<SocketOption>, String> {
    let new = new.options(kind).map_err(|e| e.to_string())?;
    for &(level, name, what) in REFUSED {
        match socket::option_at(fd, level, name, LONGEST) {
            Ok(value) if value.iter().all(|byte| *byte == 0) => {}
            Err(e) if is_absent(&e) => {}
            Ok(_) | Err(_) => return Err(format!("it has {what}, which cannot be saved")),
        }
    }
    let mut options = Vec::new();
    for (level, name) in kind.known() {
        match socket::option_at(fd, level, name, LONGEST) {
            Ok(value) if new.get(&(level, name)) == Some(&value) => {}
            Ok(value) => options.push(SocketOption { name, value, level }),
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(format!("its option {name} of level {level} cannot be read: {e}")),
        }
    }
    Ok(options)
}

/// Sets what differs: all that is not among `options` is as a new socket has it. `is_roots`: the image's owner is root, who
/// may set anything.
///
/// # Errors
/// Named: an option that this kernel, or the image's owner, cannot set.
pub fn rebuild(fd: &OwnedFd, kind: Kind, options: &[SocketOption], is_roots: bool) -> io::Result<()> {
    // An image may ask for what its owner could not.
    if let Some(option) = options.iter().find(|option| !kind.takes(option)) {
        let what = format!("socket option {} of level {} is none that is kept", option.name, option.level);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let new = new_sockets::options(kind)?;
    for (level, name) in kind.known() {
        let stored = options.iter().find(|option| (option.level, option.name) == (level, name));
        // One may set another: what was not set is set back.
        let Some(value) = stored.map(|option| &option.value).or_else(|| new.get(&(level, name))) else {
            continue;
        };
        let option = SocketOption { name, value: value.clone(), level };
        let named = |e: io::Error| {
            io::Error::new(e.kind(), format!("option {name} of level {level} of a socket cannot be set: {e}"))
        };
        let now = || socket::option_at(fd, level, name, LONGEST);
        if now().map_err(named)? == option.value {
            continue;
        }
        set(fd, &option, is_roots).map_err(named)?;
        let got = now().map_err(named)?;
        if got != option.value && !is_size(&option) {
            return Err(named(io::Error::other(format!("it is {got:?} and not {:?}", option.value))));
        }
    }
    Ok(())
}

/// Of an odd size, which the kernel has chosen, half is set.
pub fn is_size(option: &SocketOption) -> bool {
    option.level == libc::SOL_SOCKET && [libc::SO_SNDBUF, libc::SO_RCVBUF].contains(&option.name)
}

fn set(fd: &OwnedFd, option: &SocketOption, is_roots: bool) -> io::Result<()> {
    let (level, name, value) = (option.level, option.name, option.value.as_slice());
    if level == libc::SOL_SOCKET {
        match name {
            libc::SO_SNDBUF => return set_size(fd, name, &halved(value)),
            libc::SO_RCVBUF => return set_size(fd, name, &halved(value)),
            // A time that is not on is kept all the same.
            libc::SO_LINGER if value.len() == 8 => {
                let on = [&1i32.to_ne_bytes()[..], &value[4..]].concat();
                socket::set_option(fd, name, &on)?;
            }
            _ => {}
        }
    }
    let _as_anybody = if is_roots { None } else { Some(NoNetworkRights::begin()?) };
    socket::set_option_at(fd, level, name, value)
}

/// SO_SNDBUF or SO_RCVBUF by its privileged name, which knows no limit (socket(7)); by users up to what all have
/// (net.core.rmem_max, wmem_max).
pub fn set_size(fd: &OwnedFd, name: i32, value: &[u8]) -> io::Result<()> {
    let forced = if name == libc::SO_SNDBUF { libc::SO_SNDBUFFORCE } else { libc::SO_RCVBUFFORCE };
    let set = |name| socket::set_option(fd, name, value);
    set(forced).or_else(|e| if e.raw_os_error() == Some(libc::EPERM) { set(name) } else { Err(e) })
}

/// The kernel doubles what it is given as the size of a buffer.
pub fn halved(value: &[u8]) -> Vec<u8> {
    let size = value.first_chunk::<4>().map_or(0, |b| i32::from_ne_bytes(*b));
    (size / 2).to_ne_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 6] = [
        Kind { family: libc::AF_UNIX, kind: libc::SOCK_STREAM, protocol: 0, connected: false },
        Kind { family: libc::AF_UNIX, kind: libc::SOCK_DGRAM, protocol: 0, connected: false },
        Kind {
            family: libc::AF_INET,
            kind: libc::SOCK_STREAM,
            protocol: libc::IPPROTO_TCP,
            connected: false,
        },
        Kind {
            family: libc::AF_INET6,
            kind: libc::SOCK_STREAM,
            protocol: libc::IPPROTO_TCP,
            connected: false,
        },
        Kind { family: libc::AF_INET, kind: libc::SOCK_DGRAM, protocol: libc::IPPROTO_UDP, connected: false },
        Kind {
            family: libc::AF_INET6,
            kind: libc::SOCK_DGRAM,
            protocol: libc::IPPROTO_UDP,
            connected: false,
        },
    ];

    fn new(kind: Kind) -> OwnedFd {
        socket::create(kind.family, kind.kind, kind.protocol).unwrap()
    }

    /// What getsockopt(2) answers that is nothing a program sets: what the socket is, its peer, errors, counts, and what
    /// another option says as well.
    const NOTHING_TO_SET: &[(i32, &[i32])] = &[
        // SO_TYPE, SO_ERROR, SO_BSDCOMPAT, peers, SO_SNDLOWAT, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN, SO_BPF_EXTENSIONS,
        // SO_MEMINFO, NAPI, SO_COOKIE, SO_PEERGROUPS, SO_BINDTOIFINDEX, timeouts and timestamps again, SO_NETNS_COOKIE,
        // SO_PEERPIDFD, DEVMEM.
        (
            libc::SOL_SOCKET,
            &[3, 4, 14, 17, 19, 28, 30, 31, 38, 39, 48, 55, 56, 57, 59, 62, 65, 66, 67, 71, 77, 78, 79, 80],
        ),
        // IP_PKTOPTIONS, IP_MTU, memberships and filters of groups (asked for one by one), IP_PROTOCOL; of raw sockets
        // IP_HDRINCL, IP_ROUTER_ALERT, IP_NODEFRAG; iptables.
        (libc::SOL_IP, &[3, 5, 9, 14, 22, 41, 48, 52, 64, 65, 66, 67, 80, 81, 82, 83, 96, 97]),
        // IPV6_ADDRFORM, IPV6_2292PKTOPTIONS, IPV6_MTU, flow labels, filters of groups, IPV6_PKTINFO and IPV6_HOPLIMIT and
        // IPV6_PATHMTU, which are messages; of raw sockets IPV6_ROUTER_ALERT; ip6tables.
        (libc::SOL_IPV6, &[1, 6, 22, 24, 32, 48, 50, 52, 61, 64, 65, 68, 69, 80]),
        // TCP_INFO, TCP_MD5SIG, TCP_TIMESTAMP, TCP_CC_INFO, TCP_SAVED_SYN, TCP_FASTOPEN_KEY, TCP_ZEROCOPY_RECEIVE, TCP_AO_*,
        // TCP_IS_MPTCP, and queues under repair.
        (libc::SOL_TCP, &[11, 14, 20, 21, 22, 24, 26, 28, 29, 33, 35, 38, 39, 40, 41, 42, 43]),
        // Of UDP-Lite.
        (libc::SOL_UDP, &[10, 11]),
    ];

    #[test]
    fn every_option_that_this_kernel_has_is_known() {
        for kind in KINDS {
            let fd = new(kind);
            for &(level, nothing) in NOTHING_TO_SET {
                for name in (0..130).filter(|name| !nothing.contains(name)) {
                    let is_known = kind.known().any(|known| known == (level, name))
                        || REFUSED.iter().any(|refused| (refused.0, refused.1) == (level, name));
                    if let Ok(value) = socket::option_at(&fd, level, name, LONGEST) {
                        assert!(is_known, "{kind:?} has option {name} of level {level}: {value:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_new_socket_has_is_set_nowhere_and_what_was_set_is() {
        for kind in KINDS {
            let fd = new(kind);
            assert_eq!(capture(&fd, kind, &NewSockets::default()).unwrap(), [], "{kind:?}");
            rebuild(&new(kind), kind, &[], false).unwrap();
            let set = |level, name, value: i32| {
                let _ = socket::set_option_at(&fd, level, name, &value.to_ne_bytes());
            };
            for (level, name) in kind.known() {
                // A device, an algorithm and structures have values of their own.
                let is_number =
                    socket::option_at(&fd, level, name, LONGEST).is_ok_and(|v| v.len() <= 4 && !v.is_empty());
                if is_number && ![libc::SO_BINDTODEVICE, libc::SO_DEBUG].contains(&name) {
                    set(level, name, 1);
                }
            }
            socket::set_option(&fd, libc::SO_LINGER, &[1, 0, 0, 0, 7, 0, 0, 0]).unwrap();
            socket::set_option(&fd, libc::SO_LINGER, &[0; 8]).unwrap();
            set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 12345);
            let wanted = capture(&fd, kind, &NewSockets::default()).unwrap();
            assert!(wanted.len() > 5, "{kind:?}: {wanted:?}");
            let again = new(kind);
            rebuild(&again, kind, &wanted, true).unwrap();
            assert_eq!(capture(&again, kind, &NewSockets::default()).unwrap(), wanted, "{kind:?}");
        }
    }

    #[test]
    fn a_user_s_image_sets_nothing_that_only_root_may() {
        let kind = KINDS[2];
        let mark =
            SocketOption { name: libc::SO_MARK, value: 1i32.to_ne_bytes().to_vec(), level: libc::SOL_SOCKET };
        let refused = rebuild(&new(kind), kind, &[mark], false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
        let unknown =
            SocketOption { name: libc::SO_ATTACH_FILTER, value: vec![0; 4], level: libc::SOL_SOCKET };
        assert!(rebuild(&new(kind), kind, &[unknown], true).is_err());
    }

    #[test]
    fn what_cannot_be_set_is_refused_by_name() {
        let fd = new(KINDS[0]);
        // One instruction of classic BPF: all of each packet.
        let code: [u64; 1] = [0xffff_ffff_0000_0006];
        let program = [1u64, code.as_ptr() as u64].map(u64::to_ne_bytes).concat();
        socket::set_option(&fd, libc::SO_ATTACH_FILTER, &program).unwrap();
        assert!(capture(&fd, KINDS[0], &NewSockets::default()).unwrap_err().contains("SO_ATTACH_FILTER"));
    }
}
