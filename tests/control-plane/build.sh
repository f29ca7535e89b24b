#!/usr/bin/env bash
# Builds etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl, kubeadm, kube-proxy and kubelet into DIR/:
# one file, called by eight names. Some five minutes on 2 cores the first time, seconds where Go's build cache is warm.
#   build.sh DIR
set -euo pipefail
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "$0")"
version=$(sed -n 's#.*k8s.io/kubernetes v\([0-9.]*\)$#\1#p' go.mod)
IFS=. read -r major minor _ <<<"$version"
v=k8s.io/component-base/version
go build -trimpath -o "$out/control-plane" -ldflags "-s -w -X $v.gitVersion=v$version -X $v.gitMajor=$major -X $v.gitMinor=$minor \
  -X k8s.io/client-go/pkg/version.gitVersion=v$version -X k8s.io/kubectl/pkg/version.gitVersion=v$version" .
for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubectl kubeadm kube-proxy kubelet; do
  ln -sf control-plane "$out/$name"
done
