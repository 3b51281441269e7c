"""CriNodes with a containerd that Debian 12 does not have, of those that tests/peers/build made."""

import json
import os
import pathlib
import socket

from cri_node import CriError, CriNode
from node import PROJECT, CommandFailed, unique_name

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
PEERS = pathlib.Path(os.environ.get("KAPSULE_PEERS", CACHE / "kapsule-peers"))
LAYER = "application/vnd.oci.image.layer.v1.tar"


def shipped(name, changes):
    """A file of configs/, in which each of `changes` is made wherever it stands."""
    text = (PROJECT / "configs" / name).read_text()
    for old, new in changes.items():
        if old not in text:
            raise CommandFailed(f"configs/{name} lacks: {old}")
        text = text.replace(old, new)
    return text


class PeerNode(CriNode):
    """As CriNode; `containerd` is a folder of PEERS with containerd, its shim and ctr."""

    containerd = None

    def __init__(self, **options):
        super().__init__(**options)
        programs = (PEERS / self.containerd, PEERS / "runc", os.environ["PATH"])
        self.environment = {**os.environ, "PATH": ":".join(map(str, programs))}

    def start_second_registry(self, address, http="", more=""):
        """The same images at another address, with more settings of docker-registry."""
        config = self.folder / "second-registry.yml"
        text = (self.folder / "registry.yml").read_text()
        config.write_text(text.replace(f"addr: {self.registry}", f"addr: {address}{http}") + more)
        self.start("second-registry", "docker-registry", "serve", config)
        host, port = address.split(":")
        self.wait_for("second-registry",
                      lambda: socket.create_connection((host, int(port)), 1).close() or True)

    def stop(self):
        if "second-registry" in self.daemons:
            self.stop_daemon("second-registry")
        super().stop()

    def start_containerd(self):
        self.write_network()
        processor = self.folder / "stream-processor"
        processor.write_text(f"#!/bin/sh\necho asked >> {self.asked}\nexit 1\n")
        processor.chmod(0o755)
        processors = "".join(f"""[stream_processors."io.containerd.ocicrypt.decoder.v1.tar{kind}"]
  accepts = ["{LAYER}{suffix}+encrypted"]
  returns = "{LAYER}{suffix}"
  path = "{processor}"
""" for kind, suffix in (("", ""), (".gzip", "+gzip")))
        config = self.folder / "containerd.toml"
        config.write_text(self.config() + processors)
        self.start("containerd", PEERS / self.containerd / "containerd", "--config", config,
                   env=self.environment)
        self.wait_for("containerd", self.is_ready)

    def is_ready(self):
        try:
            conditions = self.cri("RuntimeService/Status")["status"]["conditions"]
        except CriError:
            return False
        # 2.x has conditions about what is deprecated, too.
        return all(condition["status"] for condition in conditions
                   if condition["type"] in ("RuntimeReady", "NetworkReady"))

    def places(self):
        """What every version's config begins with."""
        return f"""root = "{self.containerd_root}"
state = "{self.folder}/state"
[grpc]
  address = "{self.socket}"
[ttrpc]
  address = "{self.socket}.ttrpc"
"""

    def restart_containerd(self, **settings):
        self.stop_daemon("containerd")
        (self.folder / "logs" / "containerd.log").unlink()
        for name, value in settings.items():
            setattr(self, name, value)
        self.start_containerd()

    def ctr(self, *arguments, **options):
        return super().ctr(*arguments, env=self.environment, **options)

    def start_container(self, pod, image, **config):
        """As pod.start(), with more members of CRI's ContainerConfig. Returns its id."""
        identifier = self.cri(
            "RuntimeService/CreateContainer", pod_sandbox_id=pod.id, sandbox_config=pod.config,
            config={"metadata": {"name": unique_name()}, "image": {"image": image},
                    "command": ["/bin/sleep", "1000"], **config})["container_id"]
        self.cri("RuntimeService/StartContainer", container_id=identifier)
        return identifier


class Containerd2Node(PeerNode):
    """containerd 2.x. `annotations`: CRI pulls as containerd 1.x did, with labels about the
    image; `exports`: the transfer service gives them; `maps`: the kernel maps the owners of files
    for user namespaces; `snapshotter`: that of pods whose runtime is not "kapsule"."""

    containerd = "containerd-2"
    exports = True
    maps = True
    snapshotter = "kapsule"

    def config(self):
        text = shipped("containerd/2.toml", {
            '"/run/kapsule/snapshotter.sock"': f'"{self.folder}/snapshotter.sock"',
            '"/var/lib/kapsule"': f'"{self.kapsule_root}"',
            **({} if self.exports else {'enable_remote_snapshot_annotations = "true"': ""}),
            **({} if self.maps else {'capabilities = ["remap-ids"]': ""}),
            'cri.v1.images"]\n  snapshotter = "kapsule"\n': f"""cri.v1.images"]
  snapshotter = "{self.snapshotter}"
  disable_snapshot_annotations = {json.dumps(not self.annotations)}
  stats_collect_period = 1
""",
            "version = 3\n": f"""version = 3
{self.places()}"""})
        return text + shipped("kubernetes/runtime-class.toml", {"version = 3\n": ""}) + f"""
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{self.pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{self.folder}/cni"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.folder}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"""


class Containerd17Node(PeerNode):
    """containerd 1.7. `annotations`: CRI hands the snapshotter labels about images."""

    containerd = "containerd-1.7"

    def config(self):
        return shipped("containerd/1.7.toml", {
            '"/run/kapsule/snapshotter.sock"': f'"{self.folder}/snapshotter.sock"',
            '"/var/lib/kapsule"': f'"{self.kapsule_root}"',
            "disable_snapshot_annotations = false":
                f"disable_snapshot_annotations = {json.dumps(not self.annotations)}",
            "version = 2\n": f"""version = 2
{self.places()}"""}) + f"""
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{self.pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stats_collect_period = 1
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self.folder}/cni"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.folder}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"""
