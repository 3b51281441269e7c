"""Images of very many layers and with very large manifests: they run, or say at once why not.

Needs root and the programs of build/bin (KAPSULE_BIN names another folder).
"""

import gzip
import hashlib
import io
import json
import pathlib
import shutil
import tarfile
import tempfile
import time
import unittest

from cri_node import CriError, CriNode
from node import BIN, PROJECT, make_base_image, run, sha256_of
from repository import MANIFEST, Repository

MODEL = "/models/tiny/model.gguf"
LAYERS = 1000
ORDINARY_LAYERS = 600  # more than mount(2) takes
REFUSAL = "[0-9]+ layers.* use an image with fewer layers"
MANIFEST_LIMIT = 4 << 20  # of docker-registry and of Kapsule
OPEN_SECONDS = 90  # that a container may wait for its layers
AT_ONCE = OPEN_SECONDS / 2  # not after waiting for them, on a machine under load too


def setUpModule():
    global work, node, repository, digest
    work = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-bounds-"))
    unittest.addModuleCleanup(shutil.rmtree, work)
    model = work / "tiny.gguf"
    run(PROJECT / "scripts" / "make-tiny-gguf", model, "--pad-mib", 1)
    digest = sha256_of(model)
    (work / "Modelfile").write_text(f"FROM {model}\n")
    run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-2048", "-o", work / "keys")
    node = CriNode(folder=make_folder_in_memory(),
                   settings=f"open_timeout_ms = {OPEN_SECONDS * 1000}\n")
    repository = Repository(node.registry, "acme/tiny")
    try:
        make_base_image(work / "pause")
        node.start_for_pods(work / "pause", work / "keys" / "private.pem")
        run(BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "-t", repository.name("small"),
            "--insecure", "--encryption-key", work / "keys" / "public.pem",
            "--base", make_base_image(work / "base"), work)
    except BaseException:
        node.stop()
        raise


def tearDownModule():
    node.stop()


def make_folder_in_memory():
    """For the node: containerd syncs its disk several times for each of so many layers."""
    disk = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-bounds-node-"))
    unittest.addModuleCleanup(disk.rmdir)
    run("mount", "-t", "tmpfs", "-o", "mode=711", "kapsule-bounds", disk)
    unittest.addModuleCleanup(run, "umount", "-l", disk)
    folder = disk / "node"
    folder.mkdir()
    return folder


def plain_layer(number):
    """Descriptor and diff_id of an ordinary layer of one file."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(f"file-{number}"))
    descriptor = repository.put_blob(gzip.compress(tar.getvalue(), mtime=0))
    descriptor["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
    return descriptor, f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}"


def put_image(tag, layers, diff_ids, **members):
    """An image of these layers below those of the small one."""
    manifest = repository.manifest("small")
    config = repository.document(manifest["config"]["digest"])
    manifest["layers"] = layers + manifest["layers"]
    config["rootfs"]["diff_ids"] = diff_ids + config["rootfs"]["diff_ids"]
    config.pop("history", None)
    manifest["config"].update(repository.put_document(config))
    return repository.put_manifest(tag, {**manifest, **members})


class BoundsTest(unittest.TestCase):
    def assert_reads_the_model(self, image):
        out = node.run_container(image, "/bin/sha256sum", MODEL).stdout
        self.assertEqual(out.split()[0], digest)

    def assert_node_is_well(self):
        node.pull(repository.name("small"))
        self.assert_reads_the_model(repository.name("small"))

    def model_layers(self):
        """A thousand times the same encrypted layer: at every place a chain id of its own."""
        manifest = repository.manifest("small")
        diff_id = repository.document(manifest["config"]["digest"])["rootfs"]["diff_ids"][1]
        return [manifest["layers"][1]] * LAYERS, [diff_id] * LAYERS

    def test_a_pull_of_1000_model_layers_is_refused_by_the_number(self):
        image = put_image("many", *self.model_layers())
        start = time.monotonic()
        done = node.pull(image, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stderr, REFUSAL)
        self.assertLess(time.monotonic() - start, AT_ONCE)
        self.assert_node_is_well()

    def test_a_pod_of_1000_model_layers_is_refused_by_the_number(self):
        image = put_image("many-pod", *self.model_layers())
        node.pull_image(image)
        with node.run_pod() as pod:
            start = time.monotonic()
            with self.assertRaisesRegex(CriError, REFUSAL):
                pod.start(image)
            self.assertLess(time.monotonic() - start, AT_ONCE)
        self.assert_node_is_well()

    def test_600_ordinary_layers_are_refused_by_the_number(self):
        layers, diff_ids = zip(*map(plain_layer, range(ORDINARY_LAYERS)))
        image = put_image("plain", list(layers), list(diff_ids))
        done = node.pull(image, check=False)
        if done.returncode == 0:
            done = node.run_container(image, "/bin/ls", "/", check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stderr, REFUSAL)
        self.assert_node_is_well()

    def test_a_manifest_of_almost_4_mib_works(self):
        manifest = repository.manifest("small")
        annotations = {f"org.example.{number}": "x" * 1000 for number in range(4000)}
        manifest["annotations"] = {**manifest.get("annotations", {}), **annotations}
        self.assertLess(MANIFEST_LIMIT - len(json.dumps(manifest)), 1 << 18)
        image = repository.put_manifest("heavy", manifest)
        node.pull(image)
        self.assert_reads_the_model(image)
        node.pull_image(image)
        with node.run_pod() as pod:
            pod.start(image)

    def test_a_manifest_beyond_4_mib_is_refused_with_the_limit(self):
        manifest = repository.manifest("small")
        manifest["annotations"] = {f"org.example.{number}": "x" * 1000 for number in range(4500)}
        layout = work / "heavy"
        run("skopeo", "copy", "--insecure-policy", "--src-tls-verify=false",
            f"docker://{repository.name('small')}", f"oci:{layout}:heavy")
        text = json.dumps(manifest).encode()
        blob = hashlib.sha256(text).hexdigest()
        (layout / "blobs" / "sha256" / blob).write_bytes(text)
        index = json.loads((layout / "index.json").read_text())
        index["manifests"][0].update(digest=f"sha256:{blob}", size=len(text), mediaType=MANIFEST)
        (layout / "index.json").write_text(json.dumps(index))
        run("tar", "-C", layout, "-cf", work / "heavy.tar", ".")
        node.pull(repository.name("small"))  # whose layers these are
        node.ctr("images", "import", "--snapshotter", "kapsule", "--base-name", "heavy",
                 work / "heavy.tar")
        try:
            done = node.run_container("heavy:heavy", "/bin/ls", "/", check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertRegex(done.stderr, f"image heavy:heavy .* longer than {MANIFEST_LIMIT} bytes")
        finally:
            node.ctr("images", "remove", "--sync", "heavy:heavy")
        self.assert_node_is_well()


if __name__ == "__main__":
    unittest.main()
