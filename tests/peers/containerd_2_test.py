"""containerd 2.x with Kapsule as its snapshotter: ctr, Kubernetes' runtime interface (CRI), and
image volumes. scripts/test --peers runs it."""

import unittest

from containerd_tests import ContainerdTests
from cri_node import Container, CriError
from node import unique_name
from peer_node import Containerd2Node
from published import MODEL, MODEL_LAYERS, Publisher, layers_of

# Of what the image has, and of a new file.
OWNERS = "stat -c %u:%g / /bin/busybox /tmp && echo x > /tmp/x && stat -c %u:%g /tmp/x"


def setUpModule():
    publisher = ContainerdTests.publisher = Publisher()
    unittest.addModuleCleanup(publisher.remove)
    node = ContainerdTests.node = Containerd2Node()
    publisher.start(node)
    unittest.addModuleCleanup(node.stop)


class Containerd2Test(ContainerdTests, unittest.TestCase):
    def pulls_locally(self):
        return "Falling back to local image pull" in self.node.log("containerd")

    def test_a_pull_with_labels_from_the_transfer_service_is_lazy(self):
        self.assertFalse(self.pulls_locally())
        self.assert_cri_pull_is_lazy("transfer")

    def test_a_pull_without_labels_about_the_image_is_lazy(self):
        self.with_settings(exports=False)
        self.assertFalse(self.pulls_locally())
        self.assert_cri_pull_is_lazy("bare")

    def test_a_pull_with_snapshot_annotations_is_lazy(self):
        self.with_settings(annotations=True)
        self.assertTrue(self.pulls_locally())
        self.assert_cri_pull_is_lazy("annotations")

    def test_a_pull_by_the_client_of_ctr_runs(self):
        name = self.build("local")
        self.node.ctr("images", "pull", "--local", "--plain-http", "--snapshotter", "kapsule", name)
        self.assert_ctr_runs(name)

    def test_a_runtime_has_a_snapshotter_of_its_own(self):
        self.with_settings(snapshotter="overlayfs")
        name = self.build("runtime")
        # As the kubelet asks; without a pod containerd looks at no handler.
        self.node.cri("ImageService/PullImage", image={"image": name, "runtime_handler": "kapsule"},
                      sandbox_config={"metadata": {"name": "any"}})
        with self.node.run_pod(handler="kapsule") as pod:
            self.assert_reads_the_model(pod.start(name))
        self.assert_is_lazy(name)

    def run_in_user_namespace(self, image, command):
        maps = ("--uidmap", "0:1000000:65536", "--gidmap", "0:2000000:65536", "--remap-labels")
        return self.node.ctr("run", "--rm", "--snapshotter", "kapsule", *maps, image, unique_name(),
                             "/bin/sh", "-c", command).stdout

    def test_a_container_with_a_user_namespace_of_its_own_reads_the_model(self):
        name = self.build("users")
        self.node.pull(name)
        out = self.run_in_user_namespace(name, f"sha256sum {MODEL} && {OWNERS}").split()
        self.assertEqual(out, [self.publisher.digest, MODEL, *["0:0"] * 4])

    def test_ordinary_images_run_in_user_namespaces_whoever_maps_owners(self):
        self.node.pull(self.node.pause)
        for maps in (True, False):
            self.with_settings(maps=maps)
            out = self.run_in_user_namespace(self.node.pause, OWNERS).split()
            self.assertEqual(out, ["0:0"] * 4)

    def volume_container(self, pod, image, **mount):
        """A container of the pause image with a model at /volume."""
        return Container(self.node, self.node.start_container(pod, self.node.pause, mounts=[
            {"container_path": "/volume", "readonly": True, "image": {"image": image}, **mount}]))

    def assert_volume_reads(self, container, path):
        self.assertEqual(container.run("/bin/sha256sum", path).split()[0], self.publisher.digest)
        written = container.run("/bin/sh", "-c", "(echo x > /volume/new) 2>&1 || :")
        self.assertIn("Read-only file system", written)

    def test_an_image_volume_reads_the_model(self):
        name = self.build("volume", base=False)
        self.node.pull_image(name)
        with self.node.run_pod() as pod, self.node.run_pod() as other:
            for container in (self.volume_container(pod, name), self.volume_container(pod, name),
                              self.volume_container(other, name)):
                self.assert_volume_reads(container, f"/volume{MODEL}")
            part = self.volume_container(other, name, image_sub_path="models/llama")
            self.assert_volume_reads(part, "/volume/model.gguf")
        self.assertEqual(self.node.files_with("kapsule-marker-6a1f93c2"), [])

    def test_an_image_volume_without_key_says_so(self):
        name = self.build("foreign-volume", key="theirs", base=False)
        self.node.pull_image(name)
        with self.node.run_pod() as pod:
            with self.assertRaises(CriError) as caught:
                self.volume_container(pod, name)
        layers = "|".join(layers_of(name)[1:MODEL_LAYERS])
        self.assertRegex(str(caught.exception),
                         f"image {name}, layer [12] .({layers}).: .*no wrapped key")


if __name__ == "__main__":
    unittest.main()
