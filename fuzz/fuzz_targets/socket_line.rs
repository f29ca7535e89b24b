#![no_main]
//! Lines of `telemetry.sock`: what is taken has a topic that may be published to; what is refused is answered on one line.

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use telemetry::{socket, topic};

fuzz_target!(|data: &[u8]| {
    // A line has no line feed: the reader cuts there.
    let line = data.split(|byte| *byte == b'\n').next().unwrap_or_default();
    match socket::parse(&Bytes::copy_from_slice(line)) {
        Ok(reading) => {
            assert_eq!(topic::check_name(&reading.topic), Ok(()));
            assert!(!reading.topic.starts_with('$'));
            // JSON is written again: `1e15` becomes `1000000000000000.0`.
            assert!(reading.payload.len() <= 8 * line.len(), "a line does not blow up");
        }
        Err(problem) => assert!(!problem.contains(['\n', '\r']), "{problem:?}"),
    }
});
