#![no_main]
//! A reading's form on disk. What is read is exactly what would be written, so nothing else passes as a reading.

use libfuzzer_sys::fuzz_target;
use telemetry::reading::{decode, encode};

fuzz_target!(|data: &[u8]| {
    let Some(reading) = decode(7, data.to_vec()) else { return };
    assert_eq!(reading.seq, 7);
    assert_eq!(encode(&reading.stamp, &reading.topic, &reading.payload), data);
});
