"""What is the same with every containerd: pulls claim the model's layers, and pods and ctr's
containers read it. For test cases that set `node` and `publisher` of their class."""

import time

from cri_node import PODS, CriError
from node import BIN, run
from published import MARKER, MODEL, MODEL_LAYERS, blob, chain_ids_of, layers_of

PATIENCE_SECONDS = 90


class ContainerdTests:
    node = publisher = None

    def tearDown(self):
        asked = self.node.asked.exists()
        self.node.asked.unlink(missing_ok=True)
        self.assertFalse(asked, "containerd asked a stream processor for a layer")

    def build(self, tag, **options):
        return self.publisher.build(self.node, tag, **options)

    def snapshots(self, namespace=PODS):
        lines = self.node.ctr("snapshots", "--snapshotter", "kapsule", "list", namespace=namespace)
        return {line.split()[0] for line in lines.stdout.splitlines()[1:]}

    def assert_reads_the_model(self, container, path=MODEL):
        self.assertEqual(container.run("/bin/sha256sum", path).split()[0], self.publisher.digest)
        mapped = container.run("/bin/sh", "-c", f"/bin/probe mmap {path} | sha256sum")
        self.assertEqual(mapped.split()[0], self.publisher.digest)

    def assert_runs(self, name):
        with self.node.run_pod() as pod:
            self.assert_reads_the_model(pod.start(name))

    def assert_is_lazy(self, name):
        layers = layers_of(name)
        for layer in layers[:MODEL_LAYERS]:
            self.assertFalse(blob(self.node, layer).exists(), "containerd fetched a claimed layer")
        self.assertTrue(blob(self.node, layers[MODEL_LAYERS]).exists())
        self.assertEqual(self.node.files_with(MARKER), [])

    def assert_cri_pull_is_lazy(self, tag):
        name = self.build(tag)
        self.node.pull_image(name)
        self.assertTrue(set(chain_ids_of(name)) <= self.snapshots())
        self.assert_runs(name)
        self.assert_is_lazy(name)

    def assert_ctr_runs(self, name):
        out = self.node.run_container(name, "/bin/sha256sum", MODEL).stdout
        self.assertEqual(out.split()[0], self.publisher.digest)
        self.assertEqual(self.node.files_with(MARKER), [])

    def with_settings(self, **settings):
        """Restarts containerd, until the end of the test."""
        node = self.node
        self.addCleanup(node.restart_containerd, **{name: getattr(node, name) for name in settings})
        node.restart_containerd(**settings)

    def collect_garbage(self):
        self.node.ctr("content", "prune", "references", namespace=PODS)

    def wait_for(self, condition, what):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"{what}: not within {PATIENCE_SECONDS} s")
            time.sleep(0.1)

    def test_ctr_images_pull_and_run(self):
        name = self.build("ctr")
        self.node.pull(name)
        self.assert_ctr_runs(name)

    def test_a_pull_by_kapsule_ctl_is_lazy(self):
        name = self.build("kapsule-ctl")
        run(BIN / "kapsule-ctl", "pull", "--insecure", f"--containerd={self.node.socket}",
            "--snapshotter", "kapsule", name)
        self.assert_ctr_runs(name)
        self.assert_is_lazy(name)

    def test_a_pod_whose_key_the_node_does_not_have_says_so(self):
        name = self.build("foreign", key="theirs")
        self.node.pull_image(name)
        with self.node.run_pod() as pod:
            with self.assertRaises(CriError) as caught:
                pod.create(name)
        layers = "|".join(layers_of(name)[1:MODEL_LAYERS])
        self.assertRegex(str(caught.exception),
                         f"image {name}, layer [12] .({layers}).: .*no wrapped key")

    def test_pulling_again_changes_nothing(self):
        name = self.build("again")
        identifier, before = self.node.pull_image(name), self.snapshots()
        self.assertEqual(self.node.pull_image(name), identifier)
        self.assertEqual(self.snapshots(), before)
        self.assert_runs(name)

    def test_statistics_name_the_snapshotters_folder(self):
        filesystem, = self.node.cri("ImageService/ImageFsInfo")["image_filesystems"]
        self.assertEqual(filesystem["fs_id"]["mountpoint"], str(self.node.kapsule_root))

    def test_removing_an_image_leaves_nothing(self):
        self.collect_garbage()
        before = self.snapshots()
        name = self.build("gone")
        self.node.pull_image(name)
        self.assert_runs(name)
        self.node.remove_image(name)
        self.collect_garbage()
        self.wait_for(lambda: self.snapshots() <= before, "all is gone")
