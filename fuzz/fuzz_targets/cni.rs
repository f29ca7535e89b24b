#![no_main]
//! What CNI plugins print, and what lies in `/etc/cni/net.d`.

use container_engine::network::cni::{conf, result};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(attached) = result::parse_output(data) {
        assert!(!attached.interfaces.is_empty() && attached.dns.len() <= 3 && attached.dns_search.len() <= 32);
    }
    for list in [true, false] {
        if let Ok(conf) = conf::parse(data, list) {
            assert!(!conf.plugins.is_empty() && !conf.versions.is_empty() && !conf.name.contains('/'));
        }
    }
});
