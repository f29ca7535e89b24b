//! Where pods come from: the API server, static manifests, and the store while there is no cluster.
