#!/usr/bin/env bash
# Starts a real Kubernetes control plane, set up as kubeadm does it; it stops on SIGTERM, on Ctrl-C, and when its standard input ends.
#   start.sh DIR [API_PORT]      takes API_PORT to API_PORT+4
# BIN is the folder of the binaries that build.sh makes. ADVERTISE is the address that pods and other machines reach the API server
# by. DIR/admin.conf is the administrator's kubeconfig, DIR/join the arguments of a `kubeadm join`, DIR/NAME.pid each component's id.
# APISERVER_FLAGS and KCM_FLAGS are added to the components' own.
set -euo pipefail
dir=$(realpath -m "$1")
port=${2:-6443}
advertise=${ADVERTISE:?address of the API server for others}
bin=${BIN:?folder of the binaries}
etcd_port=$((port + 1)) peer_port=$((port + 2)) kcm_port=$((port + 3)) sched_port=$((port + 4))
pki=$dir/pki log=$dir/log
mkdir -p "$pki" "$log"
version=$("$bin/kube-apiserver" --version | cut -d' ' -f2)

cat >"$dir/kubeadm.yaml" <<Y
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: $advertise, bindPort: $port}
nodeRegistration: {name: core, criSocket: "unix:///none"}
bootstrapTokens: [{token: abcdef.0123456789abcdef, ttl: 24h0m0s, usages: [signing, authentication], groups: ["system:bootstrappers:kubeadm:default-node-token"]}]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: $version
clusterName: test
controlPlaneEndpoint: 127.0.0.1:$port
certificatesDir: $pki
networking: {podSubnet: 10.244.0.0/16, serviceSubnet: 10.96.0.0/16, dnsDomain: cluster.local}
apiServer: {certSANs: [localhost, 127.0.0.1, $advertise]}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
serverTLSBootstrap: true
rotateCertificates: true
# The disks of machines that tests run on are often fuller than a node's should be.
evictionHard: {memory.available: 20Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%, imagefs.inodesFree: 1%}
Y
[ -e "$dir/admin.conf" ] || {
  "$bin/kubeadm" init phase certs all --config "$dir/kubeadm.yaml" >"$log/kubeadm" 2>&1
  for who in admin super-admin controller-manager scheduler; do
    "$bin/kubeadm" init phase kubeconfig $who --config "$dir/kubeadm.yaml" --kubeconfig-dir "$dir" >>"$log/kubeadm" 2>&1
  done
  # kubeadm refuses loopback as the advertised address, and the components here are on it.
  sed -i "s#server: .*#server: https://127.0.0.1:$port#" "$dir"/*.conf
}

pids=()
# The last started stops first: the API server hangs where etcd goes before it.
stop() {
  trap - EXIT INT TERM
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    kill "${pids[i]}" 2>/dev/null || continue
    kill -CONT "${pids[i]}" 2>/dev/null || true
    for _ in $(seq 20); do kill -0 "${pids[i]}" 2>/dev/null || break; sleep .1; done
    kill -9 "${pids[i]}" 2>/dev/null || true
  done
}
trap stop EXIT
trap 'exit 0' INT TERM
start() {
  local name=$1
  shift
  "$bin/$name" "$@" </dev/null >>"$log/$name" 2>&1 &
  pids+=($!)
  echo $! >"$dir/$name.pid"
}

start etcd --name core --data-dir "$dir/etcd" --unsafe-no-fsync \
  --listen-client-urls https://127.0.0.1:$etcd_port --advertise-client-urls https://127.0.0.1:$etcd_port \
  --listen-peer-urls https://127.0.0.1:$peer_port --initial-advertise-peer-urls https://127.0.0.1:$peer_port \
  --initial-cluster core=https://127.0.0.1:$peer_port --client-cert-auth --peer-client-cert-auth \
  --cert-file "$pki/etcd/server.crt" --key-file "$pki/etcd/server.key" --trusted-ca-file "$pki/etcd/ca.crt" \
  --peer-cert-file "$pki/etcd/peer.crt" --peer-key-file "$pki/etcd/peer.key" --peer-trusted-ca-file "$pki/etcd/ca.crt"
apiserver() {
  start kube-apiserver --bind-address 0.0.0.0 --advertise-address "$advertise" --secure-port "$port" \
    --etcd-servers https://127.0.0.1:$etcd_port --etcd-cafile "$pki/etcd/ca.crt" \
    --etcd-certfile "$pki/apiserver-etcd-client.crt" --etcd-keyfile "$pki/apiserver-etcd-client.key" \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --enable-bootstrap-token-auth \
    --allow-privileged=true --client-ca-file "$pki/ca.crt" --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
    --kubelet-client-certificate "$pki/apiserver-kubelet-client.crt" --kubelet-client-key "$pki/apiserver-kubelet-client.key" \
    --kubelet-preferred-address-types InternalIP,ExternalIP,Hostname --endpoint-reconciler-type none \
    --service-account-issuer https://kubernetes.default.svc.cluster.local --service-account-key-file "$pki/sa.pub" \
    --service-account-signing-key-file "$pki/sa.key" --service-cluster-ip-range 10.96.0.0/16 \
    --proxy-client-cert-file "$pki/front-proxy-client.crt" --proxy-client-key-file "$pki/front-proxy-client.key" \
    --requestheader-client-ca-file "$pki/front-proxy-ca.crt" --requestheader-allowed-names front-proxy-client \
    --requestheader-extra-headers-prefix X-Remote-Extra- --requestheader-group-headers X-Remote-Group --requestheader-username-headers X-Remote-User \
    ${APISERVER_FLAGS:-}
}
apiserver
k() { "$bin/kubectl" --kubeconfig "$dir/super-admin.conf" "$@"; }
for _ in $(seq 480); do
  k get --raw /readyz >/dev/null 2>&1 && break
  kill -0 "${pids[@]}" || exit 1
  sleep .25
done
k get --raw /readyz >/dev/null
start kube-controller-manager --kubeconfig "$dir/controller-manager.conf" --authentication-kubeconfig "$dir/controller-manager.conf" \
  --authorization-kubeconfig "$dir/controller-manager.conf" --bind-address 127.0.0.1 --secure-port $kcm_port --leader-elect=false \
  --controllers '*,bootstrapsigner,tokencleaner' --use-service-account-credentials --root-ca-file "$pki/ca.crt" --client-ca-file "$pki/ca.crt" \
  --requestheader-client-ca-file "$pki/front-proxy-ca.crt" --service-account-private-key-file "$pki/sa.key" \
  --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" --cluster-name test \
  --allocate-node-cidrs --cluster-cidr 10.244.0.0/16 --service-cluster-ip-range 10.96.0.0/16 ${KCM_FLAGS:-}
start kube-scheduler --kubeconfig "$dir/scheduler.conf" --authentication-kubeconfig "$dir/scheduler.conf" \
  --authorization-kubeconfig "$dir/scheduler.conf" --bind-address 127.0.0.1 --secure-port $sched_port --leader-elect=false
[ -e "$dir/join" ] || {
  k create clusterrolebinding kubeadm:cluster-admins --clusterrole cluster-admin --group kubeadm:cluster-admins >>"$log/kubeadm" 2>&1
  for phase in "upload-config kubeadm" "upload-config kubelet" bootstrap-token; do
    "$bin/kubeadm" init phase $phase --config "$dir/kubeadm.yaml" --kubeconfig "$dir/super-admin.conf" >>"$log/kubeadm" 2>&1
  done
  hash=$(openssl x509 -pubkey -in "$pki/ca.crt" -noout | openssl pkey -pubin -outform der | sha256sum | cut -d' ' -f1)
  echo "127.0.0.1:$port --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:$hash" >"$dir/join"
}
for _ in $(seq 480); do
  k -n kube-public get cm cluster-info -o jsonpath='{.data}' 2>/dev/null | grep -q jws &&
    k -n default get serviceaccount default >/dev/null 2>&1 && break
  sleep .25
done
echo "control plane $version ready on 127.0.0.1:$port (KUBECONFIG=$dir/admin.conf)"
# SIGUSR1 takes the API server away for as long as DIR/api-down is there.
again() {
  [ -e "$dir/api-down" ] || return 0
  local pid
  pid=$(cat "$dir/kube-apiserver.pid")
  # Asked nicely it waits a minute for those who watch.
  kill -9 "$pid"
  wait "$pid" 2>/dev/null || true
  echo >"$dir/kube-apiserver.pid"
  while [ -e "$dir/api-down" ]; do sleep .1; done
  apiserver
}
trap again USR1
# Whoever started this holds the other end.
while true; do
  status=0
  read -r -t 3600 _ || status=$?
  # Above 128 nothing came, or a signal did.
  [ "$status" -eq 0 ] || [ "$status" -gt 128 ] || exit 0
done
