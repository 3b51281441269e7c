"""A machine with systemd (systemd_machine.py) that is a Kubernetes node with containerd 2.x, and
knows nothing of Kapsule.

etcd, kube-apiserver and kube-scheduler run beside it, on its network, and end with it. There is no
kube-controller-manager: start_daemon_pod() does for a DaemonSet what that would do.
"""

import json
import time

from kubernetes import ADDRESS, NAME, SYSCTLS, KubernetesNode
from node import CommandFailed, Node, free_port
from peer_node import PEERS
from systemd_machine import PAUSE, Machine

PLACE = "/srv/peers"  # of PEERS in the machine
CONTAINERD = f"""version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
"""
KUBELET = f"""[Unit]
After=containerd.service
[Service]
ExecStart={PLACE}/kubernetes/kubelet --config /etc/kubelet.json --kubeconfig /etc/kubeconfig \\
  --cert-dir /var/lib/kubelet/pki --hostname-override {NAME} --node-ip {ADDRESS}
Restart=always
KillMode=process
"""
# What the kubelet wants of the kernel's settings; it finds files in their places.
SETTINGS = dict(zip(SYSCTLS, (1, 0, 10, 1, 1000000, 25000000)))
POD_SECONDS = 300


def has(condition):
    """Whether a pod has a condition."""
    return lambda pod: any(each["type"] == condition and each["status"] == "True"
                           for each in pod["status"].get("conditions", ()))


def has_ended(pod):
    return pod["status"]["phase"] in ("Succeeded", "Failed")


class KubernetesMachine(Machine):
    """As Machine, with containerd 2.x in the place of Debian's."""

    shared = {PLACE: PEERS}

    def __init__(self):
        super().__init__()
        (self.folder / "logs").mkdir()
        self.daemons = {}
        self.etcd, self.api = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.kubeconfig = self.folder / "kubeconfig"

    def make_disk(self):
        super().make_disk()
        for folder, peer, names in (
                ("bin", "containerd-2", ("containerd", "containerd-shim-runc-v2", "ctr")),
                ("sbin", "runc", ("runc",))):
            programs = self.folder / "usr" / folder
            programs.mkdir()
            for name in names:
                (programs / name).symlink_to(f"{PLACE}/{peer}/{name}")
        self.write("/etc/containerd/config.toml", CONTAINERD, 0o600)

    # Daemons. Those beside the machine are in its process tree.

    start_etcd = KubernetesNode.start_etcd
    start_apiserver = KubernetesNode.start_apiserver
    wait_long = KubernetesNode.wait_long

    def start_kube(self, name, program, *arguments):
        more = ("--allow-privileged",) if name == "apiserver" else ()  # as kubeadm sets it
        KubernetesNode.start_kube(self, name, program, *arguments, *more)

    def start(self, name, *command):
        Node.start(self, name, "nsenter", "--target", self.pid, "--pid", "--net", *command)

    def log(self, name=None):
        return Node.log(self, name) if name else super().log()

    def start_cluster(self):
        self.run("ip", "link", "add", "nodes", "type", "bridge")
        self.run("ip", "address", "add", f"{ADDRESS}/24", "dev", "nodes")
        self.run("ip", "link", "set", "nodes", "up")
        self.start_etcd()
        self.start_apiserver()
        self.start_kube("scheduler", "kube-scheduler", "--kubeconfig", self.kubeconfig,
                        "--leader-elect=false", "--secure-port=0")
        self.start_kubelet()

    def start_kubelet(self):
        for path, value in SETTINGS.items():
            file = f"/run/settings/{path.name}"
            self.write(file, f"{value}\n")
            self.run("mount", "--bind", file, path)
        self.run("mknod", "/dev/kmsg", "c", "1", "11")
        self.write("/etc/kubeconfig", self.kubeconfig.read_bytes(), 0o600)
        self.write("/etc/kubelet.json", json.dumps({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": ADDRESS, "healthzPort": 0,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupsPerQOS": False, "enforceNodeAllocatable": [], "failCgroupV1": False,
            "failSwapOn": False, "oomScoreAdj": 0, "makeIPTablesUtilChains": False,
            "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "1Mi"}, "imageGCHighThresholdPercent": 100}))
        self.write("/etc/systemd/system/kubelet.service", KUBELET)
        self.systemctl("daemon-reload")
        self.systemctl("start", "kubelet")
        self.wait_for("the kubelet is ready", lambda: "True" in self.kubectl(
            "get", "node", NAME, "-o",
            "jsonpath={.status.conditions[?(@.type=='Ready')].status}", check=False), POD_SECONDS)

    def lose_power(self):
        """For a moment; the disk stays as it is."""
        self.process.kill()
        self.process.wait()
        self.process = self.pid = None
        self.wait_for_daemons()
        if left := self.wait_for_the_end():
            raise CommandFailed("\n".join(left))
        self.boot()
        self.start_cluster()

    def stop(self):
        try:
            super().stop()
        finally:
            self.wait_for_daemons()

    def wait_for_daemons(self):
        for process in self.daemons.values():
            process.wait(120)

    # Calls

    def kubectl(self, *arguments, **options):
        return self.from_host(PEERS / "kubernetes" / "kubectl", "--kubeconfig", self.kubeconfig,
                              "--cache-dir", self.folder / "kubectl", *arguments, **options).stdout

    def get(self, *what):
        return json.loads(self.kubectl("get", "-o", "json", *what))

    def pod(self, name, namespace="default"):
        return self.get("pod", name, "--namespace", namespace)

    def wait_for_pod(self, name, what, condition, namespace="default"):
        deadline = time.monotonic() + POD_SECONDS
        while not condition(self.pod(name, namespace)):
            if time.monotonic() > deadline:
                raise CommandFailed(f"{name}: not {what}:\n{self.describe(name, namespace)}")
            time.sleep(0.3)

    def describe(self, name, namespace):
        return (self.kubectl("describe", "pod", name, "--namespace", namespace) +
                self.kubectl("logs", name, "--namespace", namespace, "--all-containers",
                             check=False) +
                self.journal("-u", "kapsule-*", "-u", "kubelet", "-n", "60"))

    def delete_pod(self, name, namespace):
        self.kubectl("delete", "pod", name, "--namespace", namespace, "--grace-period=5",
                     "--timeout=240s")

    def start_daemon_pod(self, namespace, name):
        """Makes the pod that a DaemonSet wants; returns its name. Which node it gets says
        kube-scheduler."""
        owner = self.get("daemonset", name, "--namespace", namespace)
        template = owner["spec"]["template"]
        made = self.kubectl("create", "-o", "name", "-f", "-", input=json.dumps({
            "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
            "metadata": {**template["metadata"], "generateName": f"{name}-",
                         "namespace": namespace, "ownerReferences": [{
                             "apiVersion": "apps/v1", "kind": "DaemonSet", "name": name,
                             "uid": owner["metadata"]["uid"], "controller": True}]}}))
        return made.strip().removeprefix("pod/")
