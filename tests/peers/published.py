"""Model images that a test publishes to its node's registry."""

import hashlib
import json
import pathlib
import shutil
import tempfile

from node import BIN, PROJECT, make_base_image, run, sha256_of

MARKER = "kapsule-marker-6a1f93c2-0123456789abcdef0123456789abcdef01234567"  # 64 bytes
MODEL = "/models/llama/model.gguf"
MODEL_LAYERS = 3  # skeleton, weights, small files


class Publisher:
    """A model and two publishers' keys, of which the node has the one of "ours"."""

    def __init__(self):
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-peers-"))
        model = self.work / "tiny.gguf"
        run(PROJECT / "scripts" / "make-tiny-gguf", model, "--marker", MARKER, "--pad-mib", 8)
        self.digest = sha256_of(model)
        (self.work / "Modelfile").write_text(f"FROM {model}\n")
        for name in ("ours", "theirs"):
            run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-2048",
                "-o", self.work / name)
        self.base = make_base_image(self.work / "base", BIN / "probe")

    def remove(self):
        shutil.rmtree(self.work)

    def start(self, node):
        """Starts the node's daemons, with our key and the image of pods; stops them again where
        that fails."""
        try:
            make_base_image(self.work / "pause")
            node.start_for_pods(self.work / "pause", self.work / "ours" / "private.pem")
        except BaseException:
            node.stop()
            raise

    def build(self, node, tag, key="ours", base=True):
        """A fresh image: every encrypted build has layers of its own."""
        name = f"{node.registry}/acme/llama:{tag}"
        run(BIN / "kapsule-ctl", "build", "-f", self.work / "Modelfile", "-t", name, "--insecure",
            "--encryption-key", self.work / key / "public.pem",
            *(("--base", self.base) if base else ()), self.work)
        return name


def layers_of(name):
    raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}").stdout
    return [layer["digest"] for layer in json.loads(raw)["layers"]]


def chain_ids_of(name):
    config = run("skopeo", "inspect", "--config", "--raw", "--tls-verify=false",
                 f"docker://{name}").stdout
    chain_ids = []
    for diff_id in json.loads(config)["rootfs"]["diff_ids"]:
        both = f"{chain_ids[-1]} {diff_id}".encode() if chain_ids else None
        chain_ids.append(f"sha256:{hashlib.sha256(both).hexdigest()}" if both else diff_id)
    return chain_ids


def blob(node, layer):
    """Where containerd keeps a layer that it has fetched."""
    return (node.containerd_root / "io.containerd.content.v1.content" / "blobs" /
            layer.replace(":", "/"))
