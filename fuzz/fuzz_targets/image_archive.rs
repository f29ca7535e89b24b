#![no_main]
//! What an archive of images says is in it: `manifest.json`, `index.json`, `repositories`.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| container_engine::image::archive::fuzz(data));
