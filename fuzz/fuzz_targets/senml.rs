#![no_main]
//! `SenML` packs, JSON and CBOR, past the limits of `measurements`: as HTTP hands them in. A pack that starts with `*` is
//! a recipe instead: long base fields over many records, which bytes alone would be too short for.

use libfuzzer_sys::fuzz_target;
use telemetry::decode::senml;

fuzz_target!(|data: &[u8]| {
    let pack = match data {
        [b'*', name, unit, count, record @ ..] => {
            let (name, unit) = ("n".repeat(usize::from(*name) * 1024), "u".repeat(usize::from(*unit) * 1024));
            let record = std::str::from_utf8(record).ok().filter(|it| !it.is_empty()).unwrap_or("{\"v\":1}");
            let records = vec![record; usize::from(*count) * 8];
            format!("[{{\"bn\":\"{name}\",\"bu\":\"{unit}\",\"v\":1}},{}]", records.join(",")).into_bytes()
        }
        pack => pack.to_vec(),
    };
    let Some(all) = senml(&pack, fuzz::RECEIVED_US) else { return };
    fuzz::check(&all);
    assert!(all.iter().all(|it| !it.name.is_empty()), "a name there must be");
    fuzz::read_back(all);
});
