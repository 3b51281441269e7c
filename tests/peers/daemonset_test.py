"""configs/kubernetes/daemonset.yaml on a Kubernetes node with systemd and containerd 2.x, and the
pods of configs/kubernetes there. scripts/test --peers runs it.

A pod of the DaemonSet is made from its template, as kube-controller-manager would.
"""

import contextlib
import json
import os
import re
import shutil
import time
import unittest

from kubernetes import NAME
from kubernetes_machine import KubernetesMachine, has, has_ended
from node import BIN, PROJECT, make_base_image
from node_image import push_node_image
from systemd_machine import PAUSE, PROGRAMS, REGISTRY
from systemd_models import MODEL, Publisher

CONFIGS = PROJECT / "configs" / "kubernetes"
NAMESPACE, DAEMON_SET = "kapsule", "kapsule-node"
UNITS = ("kapsule-keyprovider", "kapsule-snapshotter")


def setUpModule():
    global publisher, machine, installed
    publisher = Publisher()
    unittest.addModuleCleanup(publisher.remove)
    machine = KubernetesMachine().__enter__()
    unittest.addModuleCleanup(machine.stop)
    machine.start_cluster()
    make_base_image(publisher.work / "pause")
    machine.push_pause(publisher.work / "pause")
    push_node_image(machine, image_of("0.1.0"))
    make_reader()
    key = publisher.key("ours") / "private.pem"
    machine.write("/etc/kapsule/keys/node.pem", key.read_bytes(), 0o600)
    installed = Installed()


def make_reader():
    """What pods get as /srv: verifying_reader, and the model to compare with."""
    folder = machine.path("/srv/reader")
    folder.mkdir()
    shutil.copy(publisher.model, folder / "model")
    shutil.copy(BIN / "verifying_reader", folder)


def image_of(version):
    return f"{REGISTRY}/acme/kapsule-node:{version}"


def changed(text, old, new, times=1):
    text, found = re.subn(old, lambda _: new, text)
    if found != times:
        raise AssertionError(f"{old}: {found} times")
    return text


def apply(text):
    return machine.kubectl("apply", "-o", "name", "-f", "-", input=text).split()


def apply_daemon_set(version, **annotations):
    text = (CONFIGS / "daemonset.yaml").read_text()
    text = changed(text, r"registry\.example\.com/acme/kapsule-node:\S+", image_of(version), 2)
    text = changed(text, r"\n  template:\n    metadata:\n",
                   f"\n  template:\n    metadata:\n      annotations: {json.dumps(annotations)}\n")
    apply(text)


def start_daemon_pod():
    """Returns its name, when it is ready."""
    name = machine.start_daemon_pod(NAMESPACE, DAEMON_SET)
    machine.wait_for_pod(name, "ready", has("Ready"), NAMESPACE)
    return name


def started(*units):
    return [machine.show(unit, "ExecMainStartTimestampMonotonic") for unit in units]


class Installed:
    """The node gets its label, and so the DaemonSet its pod."""

    def __init__(self):
        self.version = "0.1.0"
        apply_daemon_set(self.version)
        before = started("containerd")
        self.pod = machine.start_daemon_pod(NAMESPACE, DAEMON_SET)
        machine.wait_for_pod(self.pod, "refused by the scheduler",
                             lambda it: any(each.get("reason") == "Unschedulable" for each in
                                            it["status"].get("conditions", ())), NAMESPACE)
        self.left_alone = (before == started("containerd") and
                           not machine.path("/opt/kapsule").exists())
        machine.kubectl("label", "node", NAME, "kapsule.dev/node=true")
        machine.wait_for_pod(self.pod, "initialized", has("Initialized"), NAMESPACE)
        self.restarted_containerd = before != started("containerd")
        self.init_container = machine.pod(self.pod, NAMESPACE)["status"]["initContainerStatuses"][0]


class DaemonSetTest(unittest.TestCase):
    def build(self, tag, **options):
        return publisher.build(machine, tag, **options)

    def start(self, config, command=None, volumes=False, restart="Never", **images):
        """Starts the pod of a file with other images, and maybe another command and /srv of the
        node; returns the pod's name."""
        text = (CONFIGS / config).read_text()
        text = changed(text, "restartPolicy: Never", f"restartPolicy: {restart}")
        for name, image in images.items():
            text = changed(text, rf"registry\.example\.com/acme/{name}:\w+", image)
        if command:
            text = changed(text, r"command: .*", f"command: {json.dumps(command)}")
        if volumes:
            text += "      volumeMounts: [{name: srv, mountPath: /srv}]\n"
            text += "  volumes: [{name: srv, hostPath: {path: /srv/reader}}]\n"
        name = apply(text)[0].removeprefix("pod/")
        self.addCleanup(machine.kubectl, "delete", "pod", name, "--ignore-not-found",
                        "--grace-period=1", "--timeout=240s")
        return name

    def assert_reads_the_model(self, name):
        machine.wait_for_pod(name, "ended", has_ended)
        out = machine.kubectl("logs", name)
        self.assertEqual(machine.pod(name)["status"]["phase"], "Succeeded", out)
        self.assertEqual(out.split()[0], publisher.digest)

    @contextlib.contextmanager
    def reading(self, tag):
        """A pod that compares every byte of its model with the source, again and again."""
        stop = machine.path("/srv/reader") / tag
        name = self.start("pod.yaml", llama=self.build(tag), volumes=True, command=[
            "/srv/verifying_reader", "read", MODEL, "/srv/model", f"/srv/{tag}"])
        machine.wait_for_pod(name, "ready", has("Ready"))
        yield
        self.forget_pages()
        time.sleep(0.5)  # more than a pass takes
        stop.touch()
        machine.wait_for_pod(name, "ended", has_ended)
        lines = [line.split() for line in machine.kubectl("logs", name).splitlines()
                 if not line.startswith("slow")]
        self.assertEqual([line[0] for line in lines], ["end"], lines)
        self.assertEqual(lines[0][3], "0")
        self.assertGreater(int(lines[0][1]), 1)
        self.assertEqual(machine.pod(name)["status"]["containerStatuses"][0]["restartCount"], 0)

    def forget_pages(self):
        """What is read of models next is read from the daemons."""
        files = list(machine.path("/var/lib/kapsule/l").glob(f"*/fs{MODEL}"))
        self.assertNotEqual(files, [])
        for file in files:
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def roll_out(self, **annotations):
        """As the DaemonSet's controller: away with the pod of the old template, then another."""
        apply_daemon_set(installed.version, **annotations)
        machine.delete_pod(installed.pod, NAMESPACE)
        installed.pod = start_daemon_pod()
        status = machine.pod(installed.pod, NAMESPACE)["status"]
        self.assertEqual(status["initContainerStatuses"][0]["restartCount"], 0)

    def files(self):
        """Every file of the node that a roll-out could have written, and when that was."""
        return {(str(path), path.lstat().st_mtime_ns) for folder in ("/etc", "/opt")
                for path in machine.path(folder).rglob("*")}

    def test_a_node_without_the_label_is_left_alone(self):
        self.assertTrue(installed.left_alone)

    def test_the_init_container_restarts_its_own_containerd_and_ends_well(self):
        self.assertTrue(installed.restarted_containerd)
        self.assertEqual(installed.init_container["restartCount"], 0)
        self.assertEqual(installed.init_container["state"]["terminated"]["exitCode"], 0)

    def test_the_units_run_and_are_enabled(self):
        for unit in UNITS:
            self.assertEqual(machine.systemctl("is-active", unit), "active\n")
            self.assertEqual(machine.systemctl("is-enabled", unit), "enabled\n")
        self.assertEqual(machine.systemctl("--failed", "--plain", "--no-legend"), "")

    def test_after_a_loss_of_power_the_pods_start_and_read_again(self):
        name = self.start("pod.yaml", llama=self.build("power"), command=["sleep", "100000"],
                          restart="Always")
        machine.wait_for_pod(name, "ready", has("Ready"))
        machine.lose_power()
        for each, namespace in (name, "default"), (installed.pod, NAMESPACE):
            machine.wait_for_pod(
                each, "started again and ready", lambda it: has("Ready")(it) and
                it["status"]["containerStatuses"][0]["restartCount"] > 0, namespace)
        out = machine.kubectl("exec", name, "--", "sha256sum", MODEL)
        self.assertEqual(out.split()[0], publisher.digest)

    def test_the_pod_is_ready_and_its_log_says_that_the_node_is_well(self):
        machine.wait_for_pod(installed.pod, "ready", has("Ready"), NAMESPACE)
        machine.wait_for("its log says so", lambda: "\n0 problems, " in machine.kubectl(
            "logs", installed.pod, "--namespace", NAMESPACE))

    def test_a_pod_reads_its_image_s_model_and_containerd_did_not_download_it(self):
        image = self.build("pod")
        blobs = machine.path("/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256")
        before = set(blobs.iterdir())
        self.assert_reads_the_model(self.start("pod.yaml", llama=image))
        downloaded = sum(path.stat().st_size for path in set(blobs.iterdir()) - before)
        self.assertLess(downloaded, publisher.model.stat().st_size)

    def test_a_pod_reads_an_image_volume(self):
        image = self.build("volume", base=False)
        self.assert_reads_the_model(self.start("image-volume.yaml", llama=image, runtime=PAUSE))

    def test_a_roll_out_of_the_same_programs_changes_and_restarts_nothing(self):
        with self.reading("same"):
            services = (*UNITS, "containerd")
            before, files = started(*services), self.files()
            self.roll_out(changed="yes")
            self.assertEqual(started(*services), before)
            self.assertEqual(self.files() - files, set())

    def test_a_roll_out_of_other_programs_restarts_the_services_while_pods_read(self):
        def make_later(prefix):
            for name in PROGRAMS:
                with open(prefix / f"bin/kapsule-{name}", "ab") as program:
                    program.write(b"later")

        push_node_image(machine, image_of("0.2.0"), make_later)
        with self.reading("upgraded"):
            before, containerd = started(*UNITS), started("containerd")
            fuse = machine.pids("kapsule-fuse")
            installed.version = "0.2.0"
            self.roll_out()
            machine.wait_for("another kapsule-fuse",
                             lambda: machine.pids("kapsule-fuse") not in ([], fuse))
            self.assertFalse(set(before) & set(started(*UNITS)))
            self.assertEqual(started("containerd"), containerd)

    def test_a_pod_reads_on_and_others_start_without_the_daemon_set(self):
        with self.reading("kept"):
            machine.kubectl("delete", "daemonset", DAEMON_SET, "--namespace", NAMESPACE)
            machine.delete_pod(installed.pod, NAMESPACE)
            self.addCleanup(self.install_again)
            image = self.build("later", base=False)
            self.assert_reads_the_model(self.start("image-volume.yaml", llama=image, runtime=PAUSE))
        self.assertEqual(machine.systemctl("is-active", *UNITS), "active\n" * 2)

    def install_again(self):
        apply_daemon_set(installed.version)
        installed.pod = start_daemon_pod()


if __name__ == "__main__":
    unittest.main()
