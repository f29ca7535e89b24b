#![no_main]
//! Any payload as measurements: plain numbers, flat JSON, `SenML`.

use libfuzzer_sys::fuzz_target;
use telemetry::decode::measurements;

fuzz_target!(|data: &[u8]| {
    let all = measurements(data, fuzz::RECEIVED_US);
    fuzz::check(&all);
    // JSON of the shape `{"outer": {"a": 1, …}}` repeats the outer name: a small payload must not become a large result.
    if let [b'*', name, count, ..] = data {
        let name = "n".repeat(usize::from(*name) * 512);
        let inner: Vec<_> = (0..usize::from(*count) * 8).map(|n| format!("\"{n}\":1")).collect();
        fuzz::check(&measurements(format!("{{\"{name}\":{{{}}}}}", inner.join(",")).as_bytes(), 0));
    }
    fuzz::read_back(all);
});
