"""A Kubernetes of one node: etcd, kube-apiserver, kube-scheduler, and a kubelet on containerd 2.x.

For a network and mount namespace of its own (tests/peers/run makes them): the kubelet wants an
address that is not loopback, and folders with fixed names.
"""

import contextlib
import json
import pathlib
import time

from cri_node import FORWARDING
from node import PATIENT, CommandFailed, free_port, run
from peer_node import PEERS, Containerd2Node

ADDRESS = "10.99.0.1"
NAME = "node"
TOKEN = "test"
USER, PASSWORD = "they", "their-secret"
PASSWORD_HASH = "$2b$04$4Jib6JJEdPHkcjE8ZOBDOelwSMuUtTH.QS/9jEkNJHPiB7MAlY/PC"  # bcrypt
FOLDERS = tuple(map(pathlib.Path, ("/var/lib/kubelet", "/var/log/containers", "/var/log/pods")))
# What the kubelet sets.
SYSCTLS = tuple(pathlib.Path("/proc/sys") / name for name in (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"))


class KubernetesNode(Containerd2Node):
    """As Containerd2Node, with the daemons of a cluster."""

    def __init__(self, **options):
        if len(pathlib.Path("/proc/net/route").read_text().splitlines()) > 1:
            raise CommandFailed("not in a network namespace of its own: tests/peers/run makes it")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "nodes", "type", "bridge")
        run("ip", "address", "add", f"{ADDRESS}/24", "dev", "nodes")
        run("ip", "link", "set", "nodes", "up")
        super().__init__(**options)
        self.etcd, self.api, self.private_registry = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self.images = self.folder / "cri.sock"
        self.settings.write_text(f'{PATIENT}cri_image_socket = "{self.images}"\n')
        self.kubeconfig = self.folder / "kubeconfig"
        self.sysctls = {path: path.read_text() for path in SYSCTLS}
        self.made = []

    # Daemons

    def start_cluster(self):
        self.start_etcd()
        self.start_apiserver()
        self.start_kube("scheduler", "kube-scheduler", "--kubeconfig", self.kubeconfig,
                        "--leader-elect=false", "--secure-port=0")
        self.start_kubelet()

    def start_registry(self):
        super().start_registry()
        users = self.folder / "users"
        users.write_text(f"{USER}:{PASSWORD_HASH}\n")
        self.start_second_registry(self.private_registry, more=(
            f"auth: {{htpasswd: {{realm: private, path: {users}}}}}\n"))

    def start_etcd(self):
        peers = f"http://127.0.0.1:{free_port()}"
        self.start("etcd", PEERS / "etcd" / "etcd", "--data-dir", self.folder / "etcd",
                   "--unsafe-no-fsync", "--log-level", "warn",
                   "--listen-client-urls", f"http://{self.etcd}",
                   "--advertise-client-urls", f"http://{self.etcd}",
                   "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
                   "--initial-cluster", f"default={peers}")

    def start_apiserver(self):
        key = self.folder / "service-accounts.pem"
        run("openssl", "genrsa", "-out", key, 2048)
        tokens = self.folder / "tokens.csv"
        tokens.write_text(f"{TOKEN},admin,admin,system:masters\n")
        self.start_kube("apiserver", "kube-apiserver", "--etcd-servers", f"http://{self.etcd}",
                        "--bind-address=127.0.0.1", f"--secure-port={self.api.split(':')[1]}",
                        "--advertise-address", ADDRESS, "--service-cluster-ip-range=10.96.0.0/24",
                        "--cert-dir", self.folder / "apiserver", "--token-auth-file", tokens,
                        "--authorization-mode=AlwaysAllow",
                        "--kubelet-preferred-address-types=InternalIP",
                        "--service-account-issuer=https://kubernetes.default.svc",
                        "--service-account-signing-key-file", key,
                        "--service-account-key-file", key,
                        # Without kube-controller-manager pods would wait for what they want.
                        "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition")
        self.kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": f"https://{self.api}", "insecure-skip-tls-verify": True}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}]}))
        self.wait_long("apiserver", lambda: self.kubectl("get", "--raw", "/readyz", check=False))

    def start_kubelet(self):
        for folder in FOLDERS:
            if not folder.exists():
                folder.mkdir(parents=True)
                self.made.append(folder)
            run("mount", "-t", "tmpfs", "kubelet", folder)
        for hierarchy in self.hierarchies():
            (hierarchy / self.cgroup[1:]).mkdir(exist_ok=True)
        config = self.folder / "kubelet.json"
        config.write_text(json.dumps({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": ADDRESS, "healthzPort": 0,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "imageServiceEndpoint": f"unix://{self.images}",
            "cgroupRoot": self.cgroup, "cgroupsPerQOS": False, "enforceNodeAllocatable": [],
            "failCgroupV1": False, "failSwapOn": False, "oomScoreAdj": 0,
            "makeIPTablesUtilChains": False, "localStorageCapacityIsolation": False,
            "volumePluginDir": str(self.folder / "volume-plugins"),
            "evictionHard": {"memory.available": "1Mi"}, "imageGCHighThresholdPercent": 100}))
        self.start_kube("kubelet", "kubelet", "--config", config, "--kubeconfig", self.kubeconfig,
                        "--cert-dir", self.folder / "kubelet-certificates",
                        "--hostname-override", NAME, "--node-ip", ADDRESS)
        self.wait_long("kubelet", lambda: "True" in self.kubectl(
            "get", "node", NAME, "-o",
            "jsonpath={.status.conditions[?(@.type=='Ready')].status}", check=False))

    def start_kube(self, name, program, *arguments):
        self.start(name, PEERS / "kubernetes" / program, *arguments)

    def wait_long(self, name, ready):
        """As wait_for(), for what takes longer on a machine under load."""
        deadline = time.monotonic() + 300
        while not ready():
            if self.daemons[name].poll() is not None or time.monotonic() > deadline:
                raise CommandFailed(f"{name} did not start:\n{self.log(name)[-4000:]}")
            time.sleep(0.2)

    def stop(self):
        try:
            if "kubelet" in self.daemons:
                with contextlib.suppress(CommandFailed):
                    self.kubectl("delete", "pods", "--all", "--grace-period=1", "--timeout=240s")
        finally:
            for name in ("kubelet", "scheduler", "apiserver", "etcd"):
                if name in self.daemons:
                    self.stop_daemon(name)
            try:
                super().stop()
            finally:
                for path, value in self.sysctls.items():
                    path.write_text(value)
                for folder in FOLDERS:
                    while folder.is_mount():  # the kubelet mounts its own once more
                        run("umount", "-R", "-l", folder)
                for folder in self.made:
                    folder.rmdir()

    def hierarchies(self):
        return [path for path in pathlib.Path("/sys/fs/cgroup").iterdir()
                if path.is_dir() and (path / "cgroup.procs").exists()]

    # Calls

    def kubectl(self, *arguments, check=True, **options):
        kubectl = (PEERS / "kubernetes" / "kubectl", "--kubeconfig", self.kubeconfig,
                   "--cache-dir", self.folder / "kubectl")
        return run(*kubectl, *arguments, check=check, **options).stdout
