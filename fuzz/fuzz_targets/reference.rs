#![no_main]
//! Names of images and of platforms, as people and files write them.

use container_engine::{platform::Platform, reference::ImageRef};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Ok(name) = text.parse::<ImageRef>() {
        // What becomes part of URLs and of paths.
        let plain = |part: &str| !part.is_empty() && !part.contains(['?', '#', '%', '\\', '@', ' ']);
        assert!(plain(name.registry()) && !name.registry().contains('/'), "{name:?}");
        assert!(plain(name.repository()) && name.repository().split('/').all(|it| it != ".." && !it.is_empty()));
        assert!(name.tag().is_some() || name.digest().is_some(), "{name:?}");
        assert_eq!(name.to_string().parse().as_ref(), Ok(&name), "written and read again");
        assert_eq!(name.familiar().parse().as_ref(), Ok(&name), "written short and read again");
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse().as_ref(), Ok(&platform), "written and read again");
        assert_eq!(platform.fit(&platform).is_some(), platform.architecture != "unknown", "{platform}");
    }
});
