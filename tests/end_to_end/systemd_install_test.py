"""configs/kubernetes/install-node in a privileged container, as the DaemonSet's, on a machine with
systemd.

Needs root and the programs of build/bin (KAPSULE_BIN names another folder).
"""

import re
import shutil
import time
import unittest

from node import BIN, PROJECT, CommandFailed, make_base_image, run, unique_name
from systemd_machine import PAUSE, PROGRAMS, Machine
from systemd_models import MODEL, Publisher, Reader

UNITS = ("kapsule-keyprovider", "kapsule-snapshotter")
ROOTFS = "/var/lib/node-image"
CONFIG, IMPORTED = "/etc/containerd/config.toml", "/etc/containerd/conf.d/kapsule.toml"
DAEMON_SET = (PROJECT / "configs/kubernetes/daemonset.yaml").read_text()
GLIBC = re.compile(r"/(libc|libm|libdl|libpthread|librt|libresolv|ld-linux[^/]*)\.so")
SETTINGS = f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
"""


def setUpModule():
    global publisher, machine
    publisher = Publisher()
    unittest.addModuleCleanup(publisher.remove)
    machine = Machine().__enter__()
    unittest.addModuleCleanup(machine.stop)
    machine.write(CONFIG, SETTINGS, 0o600)
    machine.systemctl("restart", "containerd")
    make_base_image(publisher.work / "pause")
    machine.push_pause(publisher.work / "pause")
    make_node_image()
    # What the administrator does: "give each node its private key".
    key = publisher.key("ours") / "private.pem"
    machine.write("/etc/kapsule/keys/node.pem", key.read_bytes(), 0o600)
    install_node()


def make_node_image():
    """Files of the DaemonSet's image, as install-node says; /usr is the machine's."""
    for folder in ("bin", "lib", "host", "usr", "opt/kapsule/bin", "opt/kapsule/lib", "tmp"):
        machine.path(f"{ROOTFS}/{folder}").mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        path = machine.path(f"{ROOTFS}/{name}")
        if path.is_dir():
            path.rmdir()
        path.symlink_to(f"usr/{name}")
    image = machine.path(f"{ROOTFS}/opt/kapsule")
    libraries = set()
    for name in PROGRAMS:
        program = shutil.copy(BIN / f"kapsule-{name}", image / "bin")
        libraries |= set(re.findall(r"=> (/\S+)", run("ldd", program).stdout))
    for library in libraries:
        if not GLIBC.search(library):
            shutil.copy(library, image / "lib")
    shutil.copytree(PROJECT / "configs", image / "configs")


def run_install_node():
    """Runs the init container; returns what it printed, the last line of which is "exit STATUS".
    containerd may be restarted meanwhile."""
    command = re.search(r"command: \[(.*/install-node)\]", DAEMON_SET)[1]
    name = unique_name()
    log = machine.path(f"/var/log/{name}")
    machine.ctr(
        "run", "--detach", "--privileged", "--with-ns", "pid:/proc/1/ns/pid",
        "--log-uri", f"file:///var/log/{name}", "--env", "PATH=/usr/sbin:/usr/bin",
        "--mount", "type=bind,src=/usr,dst=/usr,options=rbind:ro",
        "--mount", "type=bind,src=/,dst=/host,options=rbind:rw",
        "--rootfs", ROOTFS, name, "/bin/sh", "-c", f"{command}; echo exit $?")

    def stopped():
        return any(line.split()[0] == name and line.split()[2] == "STOPPED" for line in
                   machine.ctr("tasks", "list", check=False).stdout.splitlines())

    machine.wait_for("install-node ends", stopped, 240)
    machine.ctr("tasks", "delete", name, check=False)
    machine.ctr("containers", "delete", name)
    return log.read_text()


def install_node():
    text = run_install_node()
    if not text.endswith("exit 0\n"):
        raise CommandFailed(f"install-node:\n{text}\n{machine.log()}")


class InstallNodeTest(unittest.TestCase):
    def plugins(self):
        """Those of containerd that are well."""
        lines = machine.ctr("plugins", "list").stdout.splitlines()[1:]
        return {line.split()[1] for line in lines if line.split()[-1] == "ok"}

    def started(self, *units):
        return [machine.show(unit, "ExecMainStartTimestampMonotonic") for unit in units]

    def files(self):
        """Every file of the node that it could have written, and when that was."""
        return {str(path): path.lstat().st_mtime_ns for folder in ("/etc", "/opt")
                for path in machine.path(folder).rglob("*")}

    def with_config(self, text):
        """A node whose containerd is not configured yet, until the end of the test."""
        self.addCleanup(machine.systemctl, "restart", "containerd")
        self.addCleanup(machine.systemctl, "reset-failed", "containerd")  # it counts its starts
        for path in (CONFIG, IMPORTED):
            saved = machine.path(path).read_bytes()
            self.addCleanup(machine.write, path, saved, 0o600)
            machine.path(path).unlink()
        if text is not None:
            machine.write(CONFIG, text)

    def test_pods_read_models_that_containerd_did_not_download(self):
        self.assertIn("kapsule", self.plugins())
        for unit in UNITS:
            self.assertEqual(machine.systemctl("is-active", unit).strip(), "active")
            self.assertEqual(machine.systemctl("is-enabled", unit).strip(), "enabled")
        name = publisher.build(machine, "pod")
        blobs = machine.path("/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256")
        before = set(blobs.iterdir())
        machine.pull_image(name)
        with machine.run_pod() as pod:
            out = pod.start(name).run("/bin/sha256sum", MODEL)
        self.assertEqual(out.split()[0], publisher.digest)
        downloaded = sum(path.stat().st_size for path in set(blobs.iterdir()) - before)
        self.assertLess(downloaded, publisher.model.stat().st_size)

    def test_the_readiness_probe_says_that_the_node_is_well(self):
        lines = re.search(r"readinessProbe:\n +exec:\n +command:\n((?: +- .*\n)+)", DAEMON_SET)[1]
        words = [word.strip('"') for word in re.findall(r"- (.*)", lines)]
        self.assertIn("failover", machine.run(*words).stdout)
        self.addCleanup(machine.systemctl, "start", UNITS[1])
        machine.systemctl("stop", UNITS[1])
        self.assertNotEqual(machine.run(*words, check=False).returncode, 0)

    def test_a_second_time_nothing_changes_and_nothing_is_restarted(self):
        services = (*UNITS, "containerd")
        before = self.started(*services), self.files()
        install_node()
        self.assertEqual((self.started(*services), self.files()), before)

    def test_an_upgrade_restarts_the_services_while_containers_read(self):
        image = publisher.build(machine, "upgraded")
        machine.pull(image)
        reader = Reader(machine, publisher, image)
        before, containerd = self.started(*UNITS), self.started("containerd")
        fuse = machine.pids("kapsule-fuse")
        for name in PROGRAMS:
            with open(machine.path(f"{ROOTFS}/opt/kapsule/bin/kapsule-{name}"), "ab") as program:
                program.write(b"later")
        install_node()
        machine.wait_for("another kapsule-fuse",
                         lambda: machine.pids("kapsule-fuse") not in ([], fuse))
        reader.stop()
        self.assertFalse(set(before) & set(self.started(*UNITS)))
        self.assertEqual(self.started("containerd"), containerd)

    def test_what_was_cut_off_is_finished(self):
        before = self.started("containerd")
        time.sleep(1.1)  # systemd's times have seconds
        machine.path(IMPORTED).touch()
        install_node()
        self.assertNotEqual(self.started("containerd"), before)
        before = self.started("containerd")
        install_node()
        self.assertEqual(self.started("containerd"), before)

    def test_a_containerd_with_its_default_configuration_is_configured(self):
        for text in (machine.run("containerd", "config", "default").stdout, None):
            with self.subTest(text=text and text[:40]):
                self.with_config(text)
                install_node()
                self.assertIn("kapsule", self.plugins())
                dump = machine.run("containerd", "config", "dump").stdout
                self.assertEqual(re.findall(r"\n *snapshotter = (\S+)", dump)[0], '"kapsule"')
                self.doCleanups()

    def test_a_configuration_that_it_cannot_add_to_is_left_alone_and_named(self):
        for text, error in (
                ('oom_score = 0\n', "config.toml is of version 1"),
                ('version = 2\nimports = ["/etc/containerd/mine.toml"]\n',
                 'add "/etc/containerd/conf.d/\\*.toml" to imports in /etc/containerd/config.toml'),
                ('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n',
                 "disabled_plugins of /etc/containerd/config.toml has io.containerd.grpc.v1.cri"),
                ("version = \n", r"config.toml: .*line 1")):
            with self.subTest(text=text):
                self.with_config(text)
                before = self.started("containerd")
                shown = run_install_node()
                self.assertRegex(shown, f"install-node: .*{error}.*\nexit 1\n$")
                self.assertNotIn("Traceback", shown)
                self.assertEqual(machine.path(CONFIG).read_text(), text)
                self.assertFalse(machine.path(IMPORTED).exists())
                self.assertEqual(self.started("containerd"), before)
                self.doCleanups()


if __name__ == "__main__":
    unittest.main()
