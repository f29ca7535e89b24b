#![no_main]
//! What a client sends to a shim, in two pieces.

use container_engine::shim::Decoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((cut, data)) = data.split_first() else { return };
    let (mut whole, mut pieces) = (Decoder::default(), Decoder::default());
    let (first, second) = data.split_at((*cut as usize).min(data.len()));
    whole.feed(data);
    let (mut one, mut two) = (Vec::new(), Vec::new());
    while let Ok(Some(frame)) = whole.next_frame() {
        one.push(frame);
    }
    for piece in [first, second] {
        pieces.feed(piece);
        while let Ok(Some(frame)) = pieces.next_frame() {
            two.push(frame);
        }
    }
    assert_eq!(one, two);
    assert!(whole.waiting() <= data.len());
});
