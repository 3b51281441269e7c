"""Kubernetes with Kapsule as its containerd's snapshotter, and the pods of configs/kubernetes.
scripts/test --peers runs it."""

import json
import re
import signal
import time
import unittest

from kubernetes import PASSWORD, USER, KubernetesNode
from node import PROJECT
from published import MODEL, MODEL_LAYERS, Publisher, blob, layers_of

CONFIGS = PROJECT / "configs" / "kubernetes"
SECONDS = 300


def setUpModule():
    global publisher, node
    publisher = Publisher()
    unittest.addModuleCleanup(publisher.remove)
    node = KubernetesNode()
    publisher.start(node)
    unittest.addModuleCleanup(node.stop)
    node.start_cluster()


class KubernetesTest(unittest.TestCase):
    def setUp(self):
        self.addCleanup(node.kubectl, "delete", "pods", "--all", "--grace-period=1",
                        "--timeout=240s")

    def build(self, tag, **options):
        return publisher.build(node, tag, **options)

    def start(self, config, more="", command=None, **images):
        """Starts the pod of a file, with other images, `more` in its spec, and another command;
        returns the pod's name."""
        text = (CONFIGS / config).read_text()
        for name, image in images.items():
            text = self.change(text, rf"registry\.example\.com/acme/{name}:\w+", image)
        if command:
            text = self.change(text, r"command: .*", f"command: {json.dumps(command)}")
        return self.apply(self.change(text, r"\nspec:\n", f"\nspec:\n{more}"))

    def start_with_volume(self, image, more=""):
        return self.start("image-volume.yaml", more, llama=image, runtime=node.pause)

    def change(self, text, old, new):
        text, times = re.subn(old, lambda _: new, text)
        self.assertEqual(times, 1, old)
        return text

    def apply(self, text):
        made = node.kubectl("apply", "-o", "name", "-f", "-", input=text).split()
        return next(name for name in made if name.startswith("pod/")).removeprefix("pod/")

    def wait_for(self, pod, condition, what):
        deadline = time.monotonic() + SECONDS
        while not condition():
            self.assertLess(time.monotonic(), deadline,
                            f"{pod}: not {what}:\n{self.describe(pod)}")
            time.sleep(0.5)

    def describe(self, pod):
        return node.kubectl("describe", "pod", pod)

    def assert_reads_the_model(self, pod):
        phase = lambda: node.kubectl("get", "pod", pod, "-o", "jsonpath={.status.phase}")
        self.wait_for(pod, lambda: phase() in ("Succeeded", "Failed"), "ended")
        out = node.kubectl("logs", pod)
        self.assertEqual(phase(), "Succeeded", out)
        self.assertEqual(out.split()[0], publisher.digest)

    def assert_is_lazy(self, image):
        for layer in layers_of(image)[:MODEL_LAYERS]:
            self.assertFalse(blob(node, layer).exists(), "containerd fetched a claimed layer")

    def test_a_pod_reads_its_image_s_model(self):
        image = self.build("pod")
        self.assert_reads_the_model(self.start("pod.yaml", llama=image))
        self.assert_is_lazy(image)

    def test_a_pod_reads_an_image_volume(self):
        image = self.build("volume", base=False)
        self.assert_reads_the_model(self.start_with_volume(image))
        self.assert_is_lazy(image)

    def test_a_model_is_read_as_whom_the_kubelet_pulled_it_as(self):
        public = self.build("private")
        image = public.replace(node.registry, node.private_registry)
        secret = self.start("pod.yaml", llama=image)
        self.wait_for(secret, lambda: "no basic auth credentials" in self.describe(secret), "refused")
        node.kubectl("delete", "pod", secret)
        node.kubectl("create", "secret", "docker-registry", "pull",
                     f"--docker-server={node.private_registry}", f"--docker-username={USER}",
                     f"--docker-password={PASSWORD}")
        self.addCleanup(node.kubectl, "delete", "secret", "pull")
        self.assert_reads_the_model(
            self.start("pod.yaml", "  imagePullSecrets: [{name: pull}]\n", llama=image))
        self.assert_is_lazy(public)

    def test_a_killed_snapshotter_disturbs_no_pod_and_is_found_again(self):
        sleeper = self.start("pod.yaml", llama=self.build("sleeper"), command=["sleep", "1000"])
        node.kubectl("wait", "--for=condition=Ready", f"pod/{sleeper}", "--timeout=240s")
        node.stop_daemon("snapshotter", signal.SIGKILL)

        def assert_reads():
            node.forget_pages(MODEL)
            out = node.kubectl("exec", sleeper, "--", "sha256sum", MODEL)
            self.assertEqual(out.split()[0], publisher.digest)

        assert_reads()
        node.start_snapshotter()
        assert_reads()
        volume = self.build("later", base=False)
        self.assert_reads_the_model(self.start_with_volume(volume))

    def test_a_pod_with_a_user_namespace_of_its_own_reads_the_model(self):
        image = self.build("users")
        pod = self.start("pod.yaml", "  hostUsers: false\n", llama=image, command=[
            "sh", "-c", f"sha256sum {MODEL} && cat /proc/self/uid_map && echo x > /root-s"])
        self.assert_reads_the_model(pod)
        inside, outside, _ = node.kubectl("logs", pod).splitlines()[1].split()
        self.assertEqual(inside, "0")
        self.assertNotEqual(outside, "0")
        volume = self.build("users-volume", base=False)
        self.assert_reads_the_model(self.start_with_volume(volume, "  hostUsers: false\n"))

    def test_a_pod_of_a_runtime_class_has_its_snapshotter(self):
        node.restart_containerd(snapshotter="overlayfs")
        self.addCleanup(node.restart_containerd, snapshotter="kapsule")
        image = self.build("class")
        self.addCleanup(node.kubectl, "delete", "runtimeclass", "--all")
        self.assert_reads_the_model(self.start("runtime-class.yaml", llama=image))
        self.assert_is_lazy(image)

    def assert_says_why(self, pod, image):
        layers = "|".join(layers_of(image)[1:MODEL_LAYERS])
        self.wait_for(pod, lambda: "no wrapped key" in self.describe(pod), "told why")
        self.assertRegex(self.describe(pod), f"image {image}, layer [12] .({layers}).: .*no wrapped key")

    def test_the_events_of_a_pod_without_key_say_so(self):
        image = self.build("foreign", key="theirs")
        self.assert_says_why(self.start("pod.yaml", llama=image), image)

    def test_the_events_of_an_image_volume_without_key_say_so(self):
        image = self.build("foreign-volume", key="theirs", base=False)
        self.assert_says_why(self.start_with_volume(image), image)


if __name__ == "__main__":
    unittest.main()
