//! Whether a host that a script names is this one: coordinators and restarts are here, and nowhere else.

use std::net::{IpAddr, Ipv4Addr};

/// This machine, by its names.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// As gethostname(2) has it.
    pub host: String,
    /// As Slurm has it (`SLURMD_NODENAME`).
    pub node: Option<String>,
    /// /proc/net/fib_trie, which has its addresses.
    pub routes: String,
}

impl Names {
    /// Of this machine.
    pub fn here() -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let routes = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
        Self { host, node: std::env::var("SLURMD_NODENAME").ok(), routes }
    }

    /// Whether `host` is one of its names or addresses; none is looked up anywhere else.
    pub fn have(&self, host: &str) -> bool {
        match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => address.is_loopback() || self.has_address(address),
            Ok(IpAddr::V6(address)) => address.is_loopback(),
            Err(_) => {
                let mut own = std::iter::once(self.host.as_str()).chain(self.node.as_deref());
                host.eq_ignore_ascii_case("localhost") || own.any(|own| is_same(own, host))
            }
        }
    }

    /// `|-- 10.0.0.5`, then `/32 host LOCAL`.
    fn has_address(&self, wanted: Ipv4Addr) -> bool {
        let mut last = None;
        self.routes.lines().map(str::trim).any(|line| {
            if let Some(address) = line.strip_prefix("|-- ") {
                last = address.parse().ok();
            }
            line.ends_with("host LOCAL") && last == Some(wanted)
        })
    }
}

/// The same name, with a domain or without.
fn is_same(own: &str, host: &str) -> bool {
    let first = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let is_short = |name: &str| !name.contains('.');
    own.eq_ignore_ascii_case(host) || ((is_short(own) || is_short(host)) && first(own) == first(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_this_one_by_name_address_or_the_batch_system_s_name() {
        let routes =
            "Local:\n  +-- 10.0.0.0/8 2 0 2\n     |-- 10.0.0.5\n        /32 host LOCAL\n     |-- 10.0.0.9\n";
        let here = Names { host: "n1.site.org".into(), node: Some("k7".into()), routes: routes.into() };
        for host in ["localhost", "127.0.0.1", "::1", "n1", "N1.site.org", "k7", "k7.site.org", "10.0.0.5"] {
            assert!(here.have(host), "{host}");
        }
        for host in ["n2", "n1.elsewhere.org", "10.0.0.9", "", "n1.site.org.evil"] {
            assert!(!here.have(host), "{host}");
        }
        assert!(Names::here().have("127.0.0.2"));
    }
}
