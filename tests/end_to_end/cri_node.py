"""A Node whose containerd serves Kubernetes' runtime interface (CRI), with a network of its own."""

import base64
import contextlib
import hashlib
import json
import pathlib

from node import BIN, CommandFailed, Node, run, unique_name

PODS = "k8s.io"  # containerd's namespace of CRI
FORWARDING = pathlib.Path("/proc/sys/net/ipv4/ip_forward")
CNI_CACHE = pathlib.Path("/var/lib/cni")


class CriError(Exception):
    """An answer that is a gRPC error; `code` is its number."""

    def __init__(self, text):
        number, _, message = text.strip().partition(": ")
        super().__init__(message)
        self.code = int(number) if number.isdigit() else None


def make_pause_image(layout):
    """Has the image of make_base_image() sleep."""
    blobs = layout / "blobs" / "sha256"

    def changed(descriptor, change):
        """Of the document that is one."""
        document = json.loads((blobs / descriptor["digest"].split(":")[1]).read_text())
        change(document)
        text = json.dumps(document).encode()
        digest = hashlib.sha256(text).hexdigest()
        (blobs / digest).write_bytes(text)
        descriptor.update(digest=f"sha256:{digest}", size=len(text))

    index = json.loads((layout / "index.json").read_text())
    sleep = {"Cmd": ["/bin/sleep", "100000"]}
    changed(index["manifests"][0], lambda manifest: changed(
        manifest["config"], lambda config: config["config"].update(sleep)))
    (layout / "index.json").write_text(json.dumps(index))


class CriNode(Node):
    """As Node; `annotations`: whether CRI hands the snapshotter labels about images."""

    def __init__(self, annotations=False, **options):
        super().__init__(**options)
        self.annotations = annotations
        self.cgroup = f"/{unique_name()}"
        self.pause = f"{self.registry}/pause:1"
        self.asked = self.folder / "stream-processor-asked"
        self.forwarding = FORWARDING.read_text()
        self.had_cni_cache = CNI_CACHE.exists()

    # Daemons

    def start_containerd(self):
        self.write_network()
        processor = self.folder / "stream-processor"
        processor.write_text(f"#!/bin/sh\necho asked >> {self.asked}\nexit 1\n")
        processor.chmod(0o755)
        layer = "application/vnd.oci.image.layer.v1.tar"
        processors = "".join(f"""[stream_processors."io.containerd.ocicrypt.decoder.v1.tar{kind}"]
  accepts = ["{layer}{suffix}+encrypted"]
  returns = "{layer}{suffix}"
  path = "{processor}"
""" for kind, suffix in (("", ""), (".gzip", "+gzip")))
        config = self.folder / "containerd.toml"
        config.write_text(f"""version = 2
root = "{self.containerd_root}"
state = "{self.folder}/state"
[grpc]
  address = "{self.socket}"
[proxy_plugins.kapsule]
  type = "snapshot"
  address = "{self.folder}/snapshotter.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{self.pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stats_collect_period = 1
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self.folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "kapsule"
    disable_snapshot_annotations = {json.dumps(not self.annotations)}
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
      runtime_type = "io.containerd.runc.v2"
{processors}""")
        self.start("containerd", "containerd", "--config", config)
        self.wait_for("containerd", self.is_ready)

    def start_snapshotter(self):
        super().start_snapshotter()
        if "containerd" in self.daemons:  # asks nobody about a namespace without snapshots
            self.wait_for("snapshotter", lambda: self.ctr(
                "snapshots", "--snapshotter", "kapsule", "list", namespace=PODS,
                check=False).returncode == 0)

    def start_for_pods(self, layout, private_pem):
        """Starts all, with a private key and the image of pods, for which `layout` is that of
        make_base_image()."""
        self.start_registry()
        self.push_pause(layout)
        self.install_key(private_pem)
        self.start_keyprovider()
        self.start_snapshotter()
        self.start_containerd()

    def is_ready(self):
        try:
            conditions = self.cri("RuntimeService/Status")["status"]["conditions"]
        except CriError:
            return False
        return all(condition["status"] for condition in conditions)

    def write_network(self):
        (self.folder / "cni").mkdir(exist_ok=True)
        (self.folder / "cni" / "pods.conflist").write_text(json.dumps({
            "cniVersion": "0.4.0", "name": self.cgroup[1:], "plugins": [{
                "type": "ptp", "ipMasq": False, "ipam": {
                    "type": "host-local", "subnet": "10.93.0.0/24",
                    "dataDir": str(self.folder / "addresses")}}]}))

    def push_pause(self, layout):
        """Pushes the image that holds a pod's namespaces."""
        make_pause_image(layout)
        run("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", f"oci:{layout}:base",
            f"docker://{self.pause}")

    def stop(self):
        problems = []
        try:
            if "containerd" in self.daemons and self.daemons["containerd"].poll() is None:
                self.remove_pods()
        except CriError as error:
            problems.append(f"pods: {error}")
        finally:
            try:
                super().stop()
            finally:
                FORWARDING.write_text(self.forwarding)  # ptp sets it
                problems += self.sweep()
        if problems:
            raise CommandFailed("\n".join(problems))

    def sweep(self):
        """Removes what containerd and its network plugins keep outside the folder; returns what
        they should have removed themselves."""
        problems = [f"left in the network cache: {path}"
                    for path in CNI_CACHE.glob(f"**/{self.cgroup[1:]}-*")]
        for group in pathlib.Path("/sys/fs/cgroup").glob(f"*{self.cgroup}"):
            problems += [f"left: {path}" for path in group.glob("*/")]
            with contextlib.suppress(OSError):
                group.rmdir()
        if not self.had_cni_cache:
            run("find", CNI_CACHE, "-type", "d", "-empty", "-delete", check=False)
        return problems

    # Calls

    def cri(self, method, **request):
        """Answers with the members of the message; raises CriError."""
        done = run(BIN / "cri_call", self.socket, method, json.dumps(request), check=False)
        if done.returncode == 1:
            raise CriError(done.stderr)
        if done.returncode != 0:
            raise CommandFailed(f"{method}: {done.stderr}")
        return json.loads(done.stdout)

    def pull_image(self, image, **request):
        return self.cri("ImageService/PullImage", image={"image": image}, **request)["image_ref"]

    def image_status(self, image):
        return self.cri("ImageService/ImageStatus", image={"image": image}).get("image")

    def remove_image(self, image):
        self.cri("ImageService/RemoveImage", image={"image": image})

    def run_pod(self, handler=""):
        """Returns a Pod that runs."""
        name = unique_name()
        config = {"metadata": {"name": name, "uid": name, "namespace": "tests"},
                  "linux": {"cgroup_parent": self.cgroup}}
        return Pod(self, config, self.cri("RuntimeService/RunPodSandbox", config=config,
                                          runtime_handler=handler)["pod_sandbox_id"])

    def remove_pods(self):
        for pod in self.cri("RuntimeService/ListPodSandbox").get("items", []):
            Pod(self, None, pod["id"]).remove()


class Pod:
    """A pod sandbox."""

    def __init__(self, node, config, identifier):
        self.node, self.config, self.id = node, config, identifier

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()

    def remove(self):
        self.node.cri("RuntimeService/StopPodSandbox", pod_sandbox_id=self.id)
        self.node.cri("RuntimeService/RemovePodSandbox", pod_sandbox_id=self.id)

    def create(self, image):
        """Makes a container; returns its id."""
        return self.node.cri("RuntimeService/CreateContainer", pod_sandbox_id=self.id,
                             sandbox_config=self.config,
                             config={"metadata": {"name": unique_name()}, "image": {"image": image},
                                     "command": ["/bin/sleep", "1000"]})["container_id"]

    def start(self, image):
        container = self.create(image)
        self.node.cri("RuntimeService/StartContainer", container_id=container)
        return Container(self.node, container)


class Container:
    """A running container of a pod."""

    def __init__(self, node, identifier):
        self.node, self.id = node, identifier

    def run(self, *command):
        """What it prints; raises CommandFailed."""
        done = self.node.cri("RuntimeService/ExecSync", container_id=self.id, cmd=command,
                             timeout=100)
        out, err = (base64.b64decode(done[name]).decode(errors="replace")
                    for name in ("stdout", "stderr"))
        if done["exit_code"] != 0:
            raise CommandFailed(f"{command}: exit {done['exit_code']}\n{out}{err}")
        return out
