//! Devices for pods: the kubelet's device-plugin API, the pod-resources socket, the board's own devices.
