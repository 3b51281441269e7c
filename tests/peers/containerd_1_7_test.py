"""containerd 1.7 with Kapsule as its snapshotter: ctr, and Kubernetes' runtime interface (CRI).
scripts/test --peers runs it."""

import unittest

from containerd_tests import ContainerdTests
from node import PATIENT, free_port, run
from peer_node import Containerd17Node
from published import MODEL_LAYERS, Publisher, blob, layers_of


class TlsNode(Containerd17Node):
    """As Containerd17Node; its registry is there with TLS too, without which 1.7's transfer
    service does not go."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tls_registry = f"127.0.0.1:{free_port()}"
        self.certificate = self.folder / "registry.crt"
        self.environment["SSL_CERT_FILE"] = str(self.certificate)

    def start_registry(self):
        super().start_registry()
        key = self.folder / "registry.key"
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 2, "-subj",
            "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
            self.certificate)
        self.start_second_registry(self.tls_registry,
                                   f", tls: {{certificate: {self.certificate}, key: {key}}}")
        hosts = self.folder / "certs.d" / self.tls_registry
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(
            f'server = "https://{self.tls_registry}"\nca = "{self.certificate}"\n')
        self.settings.write_text(f'{PATIENT}hosts_dir = "{hosts.parent}"\n')


def setUpModule():
    publisher = ContainerdTests.publisher = Publisher()
    unittest.addModuleCleanup(publisher.remove)
    node = ContainerdTests.node = TlsNode()
    publisher.start(node)
    unittest.addModuleCleanup(node.stop)


class Containerd17Test(ContainerdTests, unittest.TestCase):
    def test_a_pull_with_default_settings_is_lazy(self):
        self.assert_cri_pull_is_lazy("defaults")

    def test_a_pull_with_snapshot_annotations_is_lazy(self):
        self.with_settings(annotations=True)
        self.assert_cri_pull_is_lazy("annotations")

    def test_a_pull_of_ctr_by_the_transfer_service_is_lazy(self):
        name = self.build("transfer").replace(self.node.registry, self.node.tls_registry)
        self.node.ctr("images", "pull", "--local=false", "--platform", "linux/amd64",
                      "--snapshotter", "kapsule", name)
        self.assert_ctr_runs(name)
        for layer in layers_of(name)[:MODEL_LAYERS]:
            self.assertFalse(blob(self.node, layer).exists(), "containerd fetched a claimed layer")


if __name__ == "__main__":
    unittest.main()
