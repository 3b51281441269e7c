"""Kubernetes' runtime interface (CRI) of containerd with Kapsule as its snapshotter.

Needs root and the programs of build/bin (KAPSULE_BIN names another folder).
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import tempfile
import threading
import time
import unittest

from cri_node import PODS, CriError, CriNode
from node import BIN, PROJECT, make_base_image, mounts_below, run, sha256_of

MARKER = "kapsule-marker-6a1f93c2-0123456789abcdef0123456789abcdef01234567"  # 64 bytes
MODEL = "/models/tiny/model.gguf"
MODEL_LAYERS = 3  # skeleton, weights, small files
PATIENCE_SECONDS = 90


def setUpModule():
    global work, node, base, image, digest, built
    built = []
    work = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-cri-"))
    unittest.addModuleCleanup(shutil.rmtree, work)
    model = work / "tiny.gguf"
    run(PROJECT / "scripts" / "make-tiny-gguf", model, "--marker", MARKER, "--pad-mib", 8)
    digest = sha256_of(model)
    (work / "Modelfile").write_text(f"FROM {model}\n")
    for name in ("ours", "theirs"):
        run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-2048", "-o", work / name)
    base = make_base_image(work / "base", BIN / "probe")
    node = CriNode()
    try:
        make_base_image(work / "pause")
        node.start_for_pods(work / "pause", work / "ours" / "private.pem")
        image = build("main")
        node.pull_image(image)
    except BaseException:
        node.stop()
        raise


def tearDownModule():
    node.stop()


def build(tag, key="ours"):
    """A fresh image: every encrypted build has layers of its own."""
    name = f"{node.registry}/acme/tiny:{tag}"
    run(BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "-t", name, "--insecure",
        "--encryption-key", work / key / "public.pem", "--base", base, work)
    built.append(name)
    return name


def layers_of(name):
    raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}").stdout
    return [layer["digest"] for layer in json.loads(raw)["layers"]]


def chain_ids_of(name):
    config = run("skopeo", "inspect", "--config", "--raw", "--tls-verify=false", f"docker://{name}").stdout
    chain_ids = []
    for diff_id in json.loads(config)["rootfs"]["diff_ids"]:
        both = f"{chain_ids[-1]} {diff_id}".encode() if chain_ids else None
        chain_ids.append(f"sha256:{hashlib.sha256(both).hexdigest()}" if both else diff_id)
    return chain_ids


def blob(layer):
    return (node.containerd_root / "io.containerd.content.v1.content" / "blobs" /
            layer.replace(":", "/"))


def snapshots():
    """Keys of all snapshots, by kind."""
    lines = node.ctr("snapshots", "--snapshotter", "kapsule", "list", namespace=PODS).stdout
    found = {"Active": set(), "Committed": set()}
    for line in lines.splitlines()[1:]:
        found[line.split()[-1]].add(line.split()[0])
    return found


class CriTest(unittest.TestCase):
    def setUp(self):
        self.assertFalse(node.asked.exists())

    def tearDown(self):
        self.assertFalse(node.asked.exists(), "containerd asked a stream processor for a layer")

    def assert_reads_the_model(self, container):
        self.assertEqual(container.run("/bin/sha256sum", MODEL).split()[0], digest)
        mapped = container.run("/bin/sh", "-c", f"/bin/probe mmap {MODEL} | sha256sum")
        self.assertEqual(mapped.split()[0], digest)

    def assert_runs(self, name, handler=""):
        with node.run_pod(handler) as pod:
            self.assert_reads_the_model(pod.start(name))

    def assert_pull_claims_layers(self, tag):
        name = build(tag)
        before = snapshots()["Committed"]
        node.pull_image(name)
        self.assertEqual(len(snapshots()["Committed"] - before), MODEL_LAYERS + 1)
        self.assert_runs(name)
        layers = layers_of(name)
        for layer in layers[:MODEL_LAYERS]:
            self.assertFalse(blob(layer).exists(), "containerd fetched a layer that was claimed")
        self.assertTrue(blob(layers[MODEL_LAYERS]).exists())
        self.assertEqual(node.files_with(MARKER), [])

    def test_a_pull_with_default_settings_applies_no_model_layer(self):
        self.assert_pull_claims_layers("defaults")

    def test_a_pull_with_labels_about_the_image_applies_no_model_layer(self):
        self.restart_containerd(annotations=True)
        try:
            self.assert_pull_claims_layers("annotations")
        finally:
            self.restart_containerd(annotations=False)

    def restart_containerd(self, annotations):
        node.stop_daemon("containerd")
        node.annotations = annotations
        node.start_containerd()

    def test_a_pod_reads_the_model_by_any_of_its_names(self):
        with node.run_pod() as pod:
            container = pod.start(image)
            names = container.run("/bin/find", "/models", "/ollama", "/hf", "-type", "f", "-size",
                                  "+1000k").split()
            self.assertEqual(len(names), 3, names)
            for name in names:
                self.assertEqual(container.run("/bin/sha256sum", name).split()[0], digest)
            self.assertEqual(container.run("/bin/probe", "change", MODEL).strip(), "all refused")

    def test_an_image_that_is_unpacked_only_for_its_container_runs(self):
        name = build("late")
        node.ctr("content", "fetch", "--plain-http", name, namespace=PODS)
        self.wait_for(lambda: node.image_status(name), "CRI knows the image")
        self.assertFalse(set(chain_ids_of(name)) & snapshots()["Committed"])
        self.assert_runs(name)
        self.assertTrue(set(chain_ids_of(name)) <= snapshots()["Committed"])

    def test_pulling_again_changes_nothing(self):
        first, before = node.image_status(image), snapshots()
        self.assertEqual(node.pull_image(image), first["id"])
        self.assertEqual(node.image_status(image), first)
        self.assertEqual(snapshots(), before)
        self.assert_runs(image)

    def test_another_namespace_has_the_image_too_and_keeps_it(self):
        name = build("shared")
        node.pull_image(name)
        node.pull(name, namespace="elsewhere")
        self.assert_runs(name)
        node.remove_image(name)
        self.collect_garbage()
        out = node.run_container(name, "/bin/sha256sum", MODEL, namespace="elsewhere").stdout
        self.assertEqual(out.split()[0], digest)

    def test_a_pod_whose_key_the_node_does_not_have_says_so(self):
        name = build("foreign", key="theirs")
        node.pull_image(name)
        before = snapshots()
        with node.run_pod() as pod:
            with self.assertRaises(CriError) as caught:
                pod.create(name)
        text = str(caught.exception)
        layers = "|".join(layers_of(name)[1:MODEL_LAYERS])
        self.assertRegex(text, f"image {name}, layer [12] .({layers}).: .*no wrapped key")
        self.assertNotIn("\n", text)
        self.collect_garbage()
        self.assertEqual(snapshots(), before)

    def test_a_pod_of_a_runtime_class_reads_the_model(self):
        self.assert_runs(image, handler="other")
        with self.assertRaisesRegex(CriError, "none"):
            node.run_pod(handler="none")

    def test_a_pod_reads_on_while_the_snapshotter_is_killed(self):
        with node.run_pod() as pod:
            container = pod.start(image)
            results, done = [], threading.Event()

            def read():
                while not done.is_set():
                    node.forget_pages(MODEL)
                    results.append(container.run("/bin/sha256sum", MODEL).split()[0])

            reader = threading.Thread(target=read)
            reader.start()
            try:
                before, mounts = node.fuse_pids(), mounts_below(node.kapsule_root)
                node.stop_daemon("snapshotter", signal.SIGKILL)
                time.sleep(1)
                node.start_snapshotter()
                self.assertEqual(node.fuse_pids(), before)
                self.assertEqual(mounts_below(node.kapsule_root), mounts)
                self.assert_reads_the_model(pod.start(image))
                self.wait_for(lambda: len(results) > 2, "it reads on")
            finally:
                done.set()
                reader.join()
        self.assertGreater(len(results), 2)
        self.assertEqual(set(results), {digest})

    def test_statistics_count_what_containers_write_and_no_model(self):
        with node.run_pod() as pod:
            container = pod.start(image)
            container.run("/bin/dd", "if=/dev/zero", "of=/tmp/file", "bs=1M", "count=3")
            self.wait_for(lambda: 3 << 20 <= self.written(container) < 4 << 20, "statistics")
        filesystem, = node.cri("ImageService/ImageFsInfo")["image_filesystems"]
        self.assertGreater(int(filesystem["used_bytes"]["value"]), 1 << 20)
        self.assertGreater(int(filesystem["inodes_used"]["value"]), 10)
        usage = dict(line.split(maxsplit=1) for line in node.ctr(
            "snapshots", "--snapshotter", "kapsule", "usage", "-b", namespace=PODS).stdout.splitlines())
        for chain_id in chain_ids_of(image)[:MODEL_LAYERS]:
            self.assertEqual(usage[chain_id].split(), ["0", "0"])

    def written(self, container):
        stats = node.cri("RuntimeService/ContainerStats", container_id=container.id)["stats"]
        return int(stats.get("writable_layer", {}).get("used_bytes", {}).get("value", 0))

    def test_removing_images_and_pods_in_any_order_leaves_nothing(self):
        seed = int.from_bytes(os.urandom(4), "big")
        order = random.Random(seed)
        with self.subTest(seed=seed):
            self.collect_garbage()
            # Blobs of other images may come to be read in the content store meanwhile.
            others = {layer.split(":")[1] for name in built for layer in layers_of(name)}
            self.wait_for(lambda: not list((node.kapsule_root / "l").glob("rm-*")),
                          "what was removed before is deleted")
            before = self.state(others)
            removals = []
            for number in range(3):
                name = build(f"gone-{number}")
                node.pull_image(name)
                pod = node.run_pod()
                pod.start(name)
                removals += [pod.remove, lambda name=name: node.remove_image(name),
                             self.collect_garbage]
            order.shuffle(removals)
            for remove in removals:
                remove()
            self.collect_garbage()
            self.wait_for(lambda: self.state(others) == before, "all is gone")

    def state(self, but_for):
        """Snapshots, their folders, mounts, and pinned blobs but for some."""
        folders, blobs = ({path.name for path in (node.kapsule_root / name).iterdir()}
                          for name in ("l", "blobs"))
        return snapshots(), folders, mounts_below(node.kapsule_root), blobs - but_for

    def collect_garbage(self):
        node.ctr("content", "prune", "references", namespace=PODS)

    def wait_for(self, condition, what):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"{what}: not within {PATIENCE_SECONDS} s")
            time.sleep(0.1)


if __name__ == "__main__":
    unittest.main()
