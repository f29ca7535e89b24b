#![no_main]
//! Blocks of the log. The first byte says what the rest is: bytes of a block (0), the same with checksums that fit (1),
//! or records to write, read back and damage (2, 3).

use libfuzzer_sys::fuzz_target;
use store::log::{
    Record,
    fuzzing::{decode, encode, seal},
};

const GENERATION: u64 = 2;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, rest)) = data.split_first() else { return };
    match mode & 3 {
        0 => read(rest),
        1 => {
            let mut bytes = rest.to_vec();
            seal(GENERATION, &mut bytes);
            read(&bytes);
        }
        _ => there_and_back(mode, rest),
    }
});

fn read(bytes: &[u8]) {
    let Some(block) = decode(GENERATION, bytes) else { return };
    assert!(block.end_seq >= block.first_seq && block.size <= bytes.len() as u64);
    let held: usize = block.records.iter().map(|record| record.body.len()).sum();
    assert!(held <= (4 << 20) + (16 << 10) + 64, "{held} bytes from a block");
    assert_eq!(decode(GENERATION + 1, bytes), None, "a block is of one generation");
}

fn there_and_back(mode: u8, rest: &[u8]) {
    let Some((&[len, times, bit], rest)) = rest.split_first_chunk() else { return };
    // Repeated, so that some of it compresses.
    let bodies = rest.chunks(usize::from(len) + 1).take(1000);
    let records: Vec<_> =
        bodies.map(|body| Record { mark: mode >> 2, body: body.repeat(usize::from(times % 32)) }).collect();
    if records.is_empty() {
        return;
    }
    let mut bytes = encode(GENERATION, 42, &records);
    let block = decode(GENERATION, &bytes).expect("what was written is read");
    assert_eq!((block.first_seq, block.end_seq), (42, 42 + records.len() as u64));
    assert_eq!((block.size, block.records), (bytes.len() as u64, records));
    let at = usize::from(bit) * 8191 % bytes.len();
    bytes[at] ^= 1 << (bit % 8);
    assert_eq!(decode(GENERATION, &bytes), None, "a flipped bit in byte {at} goes unnoticed");
}
