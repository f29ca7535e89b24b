//! The blob store over cuts, crashes, damage and wrong bytes.

use proptest::prelude::*;

use super::*;

fn store() -> (tempfile::TempDir, Content) {
    let dir = tempfile::tempdir().unwrap();
    let content = Content::open(dir.path()).unwrap();
    (dir, content)
}

/// Pretends that the kernel was started anew.
fn after_power_cut(dir: &Path) -> Content {
    for (name, _) in entries(&dir.join("images/ingest")).unwrap() {
        if name.strip_suffix(".json").is_some() {
            let path = dir.join("images/ingest").join(name);
            let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            record["boot"] = "another".into();
            fs::write(&path, record.to_string()).unwrap();
        }
    }
    Content::open(dir).unwrap()
}

fn replayed(ingest: &mut Ingest) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 7];
    loop {
        match ingest.replay(&mut buffer).unwrap() {
            0 => return all,
            n => all.extend_from_slice(&buffer[..n]),
        }
    }
}

#[test]
fn a_blob_is_whole_or_absent() {
    let (dir, content) = store();
    let digest = content.put(b"whole").unwrap();
    assert_eq!(content.put(b"whole").unwrap(), digest);
    assert_eq!(content.read(&digest, 5).unwrap(), b"whole");
    assert!(matches!(content.read(&digest, 4), Err(ContentError::TooLarge { size: 5, max: 4, .. })));
    assert_eq!(content.verify(&digest).unwrap(), 5);
    assert_eq!(content.list().unwrap().len(), 1);
    let absent = Digest::of(b"absent");
    assert!(matches!(content.read(&absent, 9), Err(ContentError::NotFound(_))));
    content.remove(&digest).unwrap();
    content.remove(&digest).unwrap();
    assert_eq!(content.size(&digest), None);
    assert_eq!(fs::read_dir(dir.path().join("images/ingest")).unwrap().count(), 0);
}

#[test]
fn wrong_bytes_get_no_name_and_do_not_stay() {
    let (_dir, content) = store();
    let digest = Digest::of(b"right");
    let mut ingest = content.ingest(digest, Some(5), "test").unwrap();
    ingest.append(b"wrong").unwrap();
    assert!(matches!(ingest.commit(None), Err(ContentError::Mismatch { .. })));
    assert_eq!(content.size(&digest), None);
    assert_eq!(content.partials().unwrap(), []);
    let mut ingest = content.ingest_new().unwrap();
    ingest.append(b"wrong").unwrap();
    assert!(ingest.commit(Some(digest)).is_err());
    assert_eq!(content.list().unwrap(), []);
}

#[test]
fn more_than_announced_is_refused_and_less_is_kept() {
    let (_dir, content) = store();
    let digest = Digest::of(b"right");
    let mut ingest = content.ingest(digest, Some(5), "test").unwrap();
    ingest.append(b"rig").unwrap();
    assert!(matches!(ingest.append(b"htX"), Err(ContentError::Size { want: 5, got: 6, .. })));
    assert!(matches!(ingest.commit(None), Err(ContentError::Size { want: 5, got: 3, .. })));
    let ingest = content.ingest(digest, Some(5), "test").unwrap();
    assert_eq!(ingest.offset(), 3);
    drop(ingest);
    // Another size is another blob's story: nothing is taken over.
    assert_eq!(content.ingest(digest, Some(2), "test").unwrap().offset(), 0);
}

#[test]
fn damage_is_found_and_set_aside_a_few_times() {
    let (dir, content) = store();
    for n in 0..10u8 {
        let digest = content.put(&[n]).unwrap();
        fs::write(content.path(&digest), b"rot").unwrap();
        assert!(matches!(content.verify(&digest), Err(ContentError::Damaged { .. })));
        assert!(matches!(content.read(&digest, 10), Err(ContentError::Damaged { .. })));
        content.set_aside(&digest).unwrap();
        content.set_aside(&digest).unwrap();
        assert_eq!(content.size(&digest), None);
    }
    let kept = fs::read_dir(dir.path().join("set-aside")).unwrap().count();
    assert!((1..=MAX_SET_ASIDE).contains(&kept), "{kept} kept");
}

#[test]
fn leftovers_of_a_crash_go_at_the_next_start() {
    let (dir, content) = store();
    let known = Digest::of(b"known");
    let ingest = content.ingest(known, None, "test").unwrap();
    std::mem::forget(content.ingest_new().unwrap());
    drop(ingest);
    let folder = dir.path().join("images/ingest");
    for name in ["strange", "strange.json", &format!("{}.json", Digest::of(b"x").hex())] {
        fs::write(folder.join(name), b"x").unwrap();
    }
    let old = Digest::of(b"old");
    drop(content.ingest(old, None, "test").unwrap());
    let long_ago = SystemTime::now() - PARTIAL_AGE - Duration::from_secs(1);
    File::options().write(true).open(folder.join(old.hex())).unwrap().set_modified(long_ago).unwrap();
    let content = Content::open(dir.path()).unwrap();
    let left: Vec<_> = content.partials().unwrap().into_iter().map(|part| part.digest).collect();
    assert_eq!(left, [known]);
    let names: Vec<_> = entries(&folder).unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| name.starts_with(&known.hex()) || name.starts_with(&old.hex())), "{names:?}");
}

/// Power can fail, or the program die, at any byte: what the file holds beyond the checkpoint may be lost, cut or garbage.
#[test]
fn every_cut_recovers() {
    let bytes: Vec<u8> = (0..60u8).collect();
    let digest = Digest::of(&bytes);
    for cut in 0..=bytes.len() {
        for checkpoint in [0, cut / 2, cut] {
            for power_cut in [false, true] {
                let (dir, content) = store();
                let mut ingest = content.ingest(digest, Some(60), "test").unwrap();
                ingest.append(&bytes[..checkpoint]).unwrap();
                ingest.checkpoint().unwrap().run().unwrap();
                ingest.append(&bytes[checkpoint..cut]).unwrap();
                drop(ingest);
                let want = if power_cut { checkpoint } else { cut };
                let content = if power_cut {
                    // The blocks after the checkpoint never reached the disk, the file's length did.
                    let mut damaged = bytes[..checkpoint].to_vec();
                    damaged.resize(cut, 0);
                    fs::write(dir.path().join("images/ingest").join(digest.hex()), damaged).unwrap();
                    after_power_cut(dir.path())
                } else {
                    Content::open(dir.path()).unwrap()
                };
                let mut ingest = content.ingest(digest, Some(60), "test").unwrap();
                assert_eq!(ingest.offset(), want as u64, "cut at {cut}, checkpoint at {checkpoint}");
                if cut % 2 == 0 {
                    assert_eq!(replayed(&mut ingest), bytes[..want]);
                }
                ingest.append(&bytes[want..]).unwrap();
                assert_eq!(ingest.commit(None).unwrap(), digest);
                assert_eq!(content.read(&digest, 100).unwrap(), bytes);
                assert_eq!(entries(&dir.path().join("images/ingest")).unwrap().len(), 0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any order of appends, checkpoints, crashes and power cuts ends in the blob, and never below the safe offset.
    #[test]
    fn any_story_ends_in_the_blob(steps in prop::collection::vec((0u8..5, 1usize..40), 1..30)) {
        let bytes: Vec<u8> = (0..=255u8).cycle().take(500).collect();
        let digest = Digest::of(&bytes);
        let (dir, mut content) = store();
        let mut ingest = content.ingest(digest, Some(500), "test").unwrap();
        let mut safe = 0;
        for (step, n) in steps {
            match step {
                0..=1 => {
                    let from = usize::try_from(ingest.offset()).unwrap();
                    ingest.append(&bytes[from..(from + n).min(500)]).unwrap();
                }
                2 => {
                    ingest.checkpoint().unwrap().run().unwrap();
                    safe = ingest.offset();
                }
                _ => {
                    let before = ingest.offset();
                    drop(ingest);
                    content = if step == 3 { Content::open(dir.path()).unwrap() } else { after_power_cut(dir.path()) };
                    ingest = content.ingest(digest, Some(500), "test").unwrap();
                    prop_assert_eq!(ingest.offset(), if step == 3 { before } else { safe });
                    safe = ingest.offset();
                }
            }
        }
        let from = usize::try_from(ingest.offset()).unwrap();
        ingest.append(&bytes[from..]).unwrap();
        prop_assert_eq!(ingest.commit(None).unwrap(), digest);
        prop_assert_eq!(content.verify(&digest).unwrap(), 500);
    }
}
