"""The image of configs/kubernetes/daemonset.yaml, as install-node describes it: made from this
host's files."""

import hashlib
import json
import pathlib
import re
import shutil
import tarfile
import tempfile

from node import BIN, PROJECT, run, sha256_of
from systemd_machine import PROGRAMS

COMMANDS = tuple(f"/usr/bin/{name}" for name in ("python3", "env", "nsenter", "sleep", "dash"))
PYTHON = pathlib.Path("/usr/lib/python3.11")
UNUSED = ("__pycache__", "dist-packages", "test", "idlelib", "lib2to3", "config-3.11-*",
          "ensurepip", "pydoc_data", "distutils", "asyncio", "unittest", "*.so")
GLIBC = re.compile(r"/(libc|libm|libdl|libpthread|librt|libresolv|ld-linux[^/]*)\.so")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def libraries(programs):
    return set(re.findall(r"(/\S+\.so\S*) \(0x", run("ldd", *programs).stdout))


def copy_of_debian(root):
    """What the image has of its distribution."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for path in (*COMMANDS, *libraries(COMMANDS)):
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (root / "usr/bin/sh").symlink_to("dash")
    shutil.copytree(PYTHON, root / "usr/lib" / PYTHON.name, symlinks=True,
                    ignore=shutil.ignore_patterns(*UNUSED))


def copy_of_kapsule(prefix):
    for folder in ("bin", "lib"):
        (prefix / folder).mkdir(parents=True)
    programs = [shutil.copy(BIN / f"kapsule-{name}", prefix / "bin") for name in PROGRAMS]
    for library in libraries(programs):
        if not GLIBC.search(library):
            shutil.copy(library, prefix / "lib")
    shutil.copytree(PROJECT / "configs", prefix / "configs")


def write_layout(folder, root):
    """The OCI layout `folder` of an image of one layer, which has the files below `root`."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = blobs / "layer"
    with tarfile.open(layer, "w") as archive:
        archive.add(root, ".")
    diff_id, size = sha256_of(layer), layer.stat().st_size
    layer.rename(blobs / diff_id)

    def add(kind, document):
        text = json.dumps(document).encode()
        digest = hashlib.sha256(text).hexdigest()
        (blobs / digest).write_bytes(text)
        return {"mediaType": f"application/vnd.oci.image.{kind}.v1+json",
                "digest": f"sha256:{digest}", "size": len(text)}

    config = add("config", {
        "architecture": "amd64", "os": "linux", "config": {"Env": [PATH]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}})
    manifest = add("manifest", {
        "schemaVersion": 2, "config": config, "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{diff_id}",
            "size": size}]})
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))


def push_node_image(machine, image, change=lambda prefix: None):
    """Pushes it to the machine's registry; `change` may alter the folder /opt/kapsule first."""
    with tempfile.TemporaryDirectory(prefix="kapsule-node-image-") as work:
        root, layout = pathlib.Path(work) / "root", pathlib.Path(work) / "layout"
        copy_of_debian(root)
        copy_of_kapsule(root / "opt/kapsule")
        change(root / "opt/kapsule")
        write_layout(layout, root)
        machine.from_host("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false",
                          f"oci:{layout}", f"docker://{image}")
