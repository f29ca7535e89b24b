//! A board that is in no cluster: what its folder and its cache say is told, to whoever listens.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::{api::Wire, object::testing::Bench};

const MANIFEST: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: s}\nspec: {containers: [{name: c, image: 'i:1'}]}\n";

fn words(change: &Change) -> String {
    match change {
        Change::Set { pod, is_static } => format!("{} {is_static}", pod.metadata.name.as_deref().unwrap()),
        Change::Gone { .. } => "gone".to_owned(),
        Change::Complete(origin) => format!("{origin:?}"),
    }
}

async fn heard(from: &mut mpsc::Receiver<Change>, n: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..n {
        let change = tokio::time::timeout(Duration::from_secs(10), from.recv()).await;
        all.push(words(&change.unwrap().unwrap()));
    }
    all
}

#[tokio::test]
async fn what_is_known_is_told_without_a_cluster() {
    let bench = Bench::new();
    let cached = json!({"metadata": {"name": "a", "namespace": "ns", "uid": "1"},
        "spec": {"nodeName": "board", "containers": [{"name": "c"}]}});
    bench.cache().put_pod(&serde_json::from_value(cached).unwrap()).await.unwrap();
    let manifests = bench.dir.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(manifests.join("s.yaml"), MANIFEST).unwrap();
    let options = Options { name: "board".to_owned(), manifests: manifests.clone(), ..Options::default() };
    let clock = bench.clock.0.clone();
    let api = Api::nowhere(clock.clone(), Wire::default());
    let source = Source::new(api, bench.cache(), &options, clock);

    let context = Context::detached();
    let stop = context.stop.clone();
    let run = source.clone().run(context);
    let test = async {
        let mut first = source.desired();
        let told = ["s-board true", "Manifests", "a false", "Cache"];
        assert_eq!(heard(&mut first, 4).await, told);
        // Whoever takes over hears everything, also after the one before has left without a word.
        drop(first);
        std::fs::write(manifests.join("broken.yaml"), "kind: [").unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut second = source.desired();
        let mut all = heard(&mut second, 4).await;
        all.sort();
        assert_eq!(all, ["Cache", "Manifests", "a false", "s-board true"]);
        let mut third = source.desired();
        assert_eq!(heard(&mut third, 4).await.len(), 4);
        std::fs::remove_file(manifests.join("s.yaml")).unwrap();
        assert_eq!(heard(&mut third, 2).await, ["gone", "Manifests"]);
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(run, test);
    outcome.unwrap();
}
