#![no_main]
//! What registries answer: manifests and indexes, and (from a first byte 1 on) how they ask for a login.

use container_engine::{
    platform::Platform,
    registry::{Challenge, Document, read_challenges},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((1, text)) = data.split_first() else { return documents(data) };
    for challenge in read_challenges(&String::from_utf8_lossy(text)) {
        assert!(!matches!(challenge, Challenge::Bearer { realm, .. } if realm.is_empty()));
    }
});

fn documents(data: &[u8]) {
    for served_as in ["", "application/vnd.oci.image.index.v1+json", "application/json; charset=utf-8"] {
        let Ok(document) = Document::parse(data, served_as) else { continue };
        let written = match &document {
            Document::Image(image) => {
                assert!(image.layers.len() <= 1024);
                serde_json::to_vec(image)
            }
            Document::Index(index) => {
                assert!(index.manifests.len() <= 1024);
                let platforms: Vec<&Platform> = index.manifests.iter().filter_map(|it| it.platform.as_ref()).collect();
                let host: Platform = "linux/arm/v7".parse().expect("a platform");
                let best = host.choose(platforms.iter().copied());
                assert!(best.is_none_or(|n| host.fit(platforms[n]).is_some()));
                serde_json::to_vec(index)
            }
        };
        let again = Document::parse(&written.expect("JSON becomes JSON"), served_as);
        assert_eq!(again.as_ref(), Ok(&document), "written and read again");
    }
}
