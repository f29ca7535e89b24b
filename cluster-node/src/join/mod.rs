//! Joining a cluster, as `kubeadm join` does: discovery, certificates and their rotation, the cluster's kubelet configuration, leaving.
