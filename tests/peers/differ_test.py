"""containerd 1.7 and 2.x with Kapsule as their differ, too: a client that sends no labels, and an
image whose model lies above an ordinary layer, so that the snapshotter does not know it when the
layers are unpacked."""

import hashlib
import json
import unittest
import urllib.request

from peer_node import Containerd2Node, Containerd17Node
from published import MARKER, MODEL, MODEL_LAYERS, Publisher

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CLAIMED = "becomes Kapsule layer"


class PullsWithoutLabels:
    def pull(self, image, snapshotter="kapsule", **options):
        """As clients of 1.x pull."""
        return self.ctr("images", "pull", "--local", "--plain-http", "--snapshotter", snapshotter,
                        image, **options)


class Differ17Node(PullsWithoutLabels, Containerd17Node):
    pass


class Differ2Node(PullsWithoutLabels, Containerd2Node):
    pass


def request(url, method="GET", body=None, **headers):
    headers = {"Content-Type": "application/octet-stream", **headers}
    asked = urllib.request.Request(url, data=body, method=method, headers=headers)
    with urllib.request.urlopen(asked) as answer:
        return answer.read(), answer.headers


def publish_upside_down(publisher, node, tag):
    """An image as publishers build it, but with the runtime's layer at the bottom."""
    name = publisher.build(node, tag)
    url = f"http://{node.registry}/v2/acme/llama"
    manifest = json.loads(request(f"{url}/manifests/{tag}", Accept=MANIFEST)[0])
    config = json.loads(request(f"{url}/blobs/{manifest['config']['digest']}")[0])
    for layers in (manifest["layers"], config["rootfs"]["diff_ids"]):
        layers.insert(0, layers.pop())
    config.pop("history", None)
    text = json.dumps(config).encode()
    digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
    upload = request(f"{url}/blobs/uploads/", "POST", b"")[1]["Location"]
    request(f"{upload}&digest={digest}", "PUT", text)
    manifest["config"].update(digest=digest, size=len(text))
    request(f"{url}/manifests/{tag}", "PUT", json.dumps(manifest).encode(),
            **{"Content-Type": MANIFEST})
    return name


class DifferTests:
    @classmethod
    def setUpClass(cls):
        cls.publisher = Publisher()
        cls.addClassCleanup(cls.publisher.remove)
        cls.node = cls.make_node()
        cls.publisher.start(cls.node)
        cls.addClassCleanup(cls.node.stop)

    def assert_reads_the_model(self, name, namespace="default"):
        out = self.node.run_container(name, "/bin/sha256sum", MODEL, namespace=namespace).stdout
        self.assertEqual(out.split()[0], self.publisher.digest)
        self.assertEqual(self.node.files_with(MARKER), [])

    def test_model_layers_are_not_unpacked(self):
        node = self.node
        name = publish_upside_down(self.publisher, node, "first")
        node.pull(name)
        log = node.log("snapshotter")
        self.assertEqual(log.count(CLAIMED), MODEL_LAYERS, log)
        self.assert_reads_the_model(name)
        self.assertFalse(node.asked.exists(), "containerd asked a stream processor")

        node.pull(name, namespace="other")
        self.assert_reads_the_model(name, namespace="other")

        # What remains of a layer whose image is removed is nothing.
        for namespace in ("default", "other"):
            node.ctr("images", "remove", "--sync", name, namespace=namespace)
            left = node.ctr("snapshots", "--snapshotter", "kapsule", "list", namespace=namespace)
            self.assertEqual(len(left.stdout.splitlines()), 1, left.stdout)

    def test_no_diff_is_made_of_what_is_above_an_encrypted_model(self):
        node = self.node
        name = publish_upside_down(self.publisher, node, "diff")
        node.pull(name)
        node.ctr("run", "-d", "--snapshotter", "kapsule", name, "kept", "/bin/sleep", "1000")
        try:
            diff = node.ctr("snapshots", "--snapshotter", "kapsule", "diff", "kept", check=False)
            self.assertNotEqual(diff.returncode, 0)
            self.assertIn("encrypted model", diff.stderr)
        finally:
            node.ctr("tasks", "kill", "-s", "KILL", "kept")
            node.ctr("tasks", "delete", "-f", "kept", check=False)
            node.ctr("containers", "delete", "kept")

    def test_layers_of_other_snapshotters_are_left_alone(self):
        node = self.node
        name = publish_upside_down(self.publisher, node, "overlay")
        before = node.log("snapshotter").count(CLAIMED)
        failed = node.pull(name, snapshotter="overlayfs", check=False)
        self.assertNotEqual(failed.returncode, 0)  # it has no key
        self.assertEqual(node.log("snapshotter").count(CLAIMED), before)
        self.assertTrue(node.asked.exists())
        node.asked.unlink()


class Differ17Test(DifferTests, unittest.TestCase):
    make_node = Differ17Node


class Differ2Test(DifferTests, unittest.TestCase):
    make_node = Differ2Node


if __name__ == "__main__":
    unittest.main()
