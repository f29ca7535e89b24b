//! Events with the kubelet's reasons: aggregated, bounded, kept while the link is down.
