"""The units of configs/systemd, run by a systemd: what starts, what serves on, what heals.

Needs root and the programs of build/bin (KAPSULE_BIN names another folder).
"""

import contextlib
import json
import time
import unittest

from systemd_machine import Machine
from systemd_models import MODEL, Publisher, Reader

SNAPSHOTTER, KEYPROVIDER = "kapsule-snapshotter", "kapsule-keyprovider"
DATA_PLANE = ("kapsule-fuse", "kapsule-fetch", "kapsule-holder")


def setUpModule():
    global publisher, machine, image
    publisher = Publisher()
    unittest.addModuleCleanup(publisher.remove)
    machine = Machine().__enter__()
    unittest.addModuleCleanup(machine.stop)
    machine.install_kapsule()
    machine.install_key("ours", publisher.key("ours"))
    machine.configure_containerd()
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "--now", KEYPROVIDER, SNAPSHOTTER)
    machine.systemctl("restart", "containerd")
    image = publisher.build(machine, "enc")
    machine.pull(image)


class SystemdTest(unittest.TestCase):
    def tearDown(self):
        """Each test leaves a machine that is well."""
        log = machine.journal("-u", SNAPSHOTTER)
        self.assertNotIn("forbidden system call", log)
        # One that was killed may still be about to say so.
        self.wait_for(lambda: machine.systemctl("is-active", SNAPSHOTTER, KEYPROVIDER, "containerd",
                                                check=False) == "active\n" * 3, "all are active")

    def assert_reads(self, name=None, **options):
        name = name or image
        out = machine.run_container(name, "/bin/sha256sum", MODEL, **options)
        self.assertEqual(out.stdout.split()[:1], [publisher.digest], out.stderr)

    @contextlib.contextmanager
    def reading(self):
        reader = Reader(machine, publisher, image)
        try:
            time.sleep(0.3)
            yield
            time.sleep(0.3)
        except BaseException:
            machine.ctr("tasks", "kill", "-s", "KILL", reader.name, check=False)
            reader.remove()
            raise
        reader.stop()

    def wait_for(self, condition, what):
        machine.wait_for(what, condition)

    def wait_for_health(self, killed=()):
        """That each of the data plane runs, none of them one of `killed`, and can be succeeded, and
        that containerd has found the snapshotter again."""
        def is_well():
            pids = [machine.pids(name) for name in DATA_PLANE]
            return (all(len(found) == 1 for found in pids) and
                    not {pid for found in pids for pid in found} & set(killed) and
                    machine.run("kapsule-ctl", "status", check=False).returncode == 0 and
                    machine.ctr("snapshots", "--snapshotter", "kapsule", "list",
                                check=False).returncode == 0)
        self.wait_for(is_well, "all is well")

    def started_and_ready(self, unit):
        """When its program was started, and when the unit was ready: microseconds."""
        return tuple(int(machine.show(unit, f"{name}TimestampMonotonic"))
                     for name in ("ExecMainStart", "ActiveEnter"))

    def process_status(self, pid):
        lines = machine.path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}

    def test_users_and_folders_are_as_the_files_say(self):
        users = {name: machine.run("id", "-u", f"kapsule-{name}").stdout.strip()
                 for name in ("fuse", "fetch", "keys")}
        self.assertEqual(len(set(users.values())), 3)
        paths = ("/etc/kapsule", "/etc/kapsule/keys", "/etc/kapsule/keys/ours.pem", "/run/kapsule",
                 "/run/kapsule-keys")
        shown = machine.run("stat", "-c", "%a %U:%G", *paths).stdout.splitlines()
        self.assertEqual(shown, ["755 root:root", "750 root:kapsule-keys", "640 root:kapsule-keys",
                                 "755 root:root", "755 kapsule-keys:kapsule-keys"])
        link = machine.path("/var/lib/containerd/io.containerd.snapshotter.v1.kapsule")
        self.assertEqual(str(link.readlink()), "/var/lib/kapsule")

    def test_every_process_is_as_small_as_its_unit_makes_it(self):
        self.assertEqual(machine.show(SNAPSHOTTER, "NRestarts"), "0")
        for name, user in (("snapshotter", "root"), ("fuse", "kapsule-fuse"),
                           ("holder", "kapsule-fuse"), ("fetch", "kapsule-fetch"),
                           ("keyprovider", "kapsule-keys")):
            pid, = machine.pids(f"kapsule-{name}")
            status = self.process_status(pid)
            uid = machine.run("id", "-u", user).stdout.strip()
            self.assertEqual(set(status["Uid"]), {uid}, name)
            self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), (["1"], ["2"]), name)
            if name != "snapshotter":
                self.assertEqual(int(status["CapEff"][0], 16), 0, name)

    def test_keys_of_layers_lie_in_memory_that_the_kernel_cannot_read(self):
        self.assert_reads()
        pid, = machine.pids("kapsule-fuse")
        self.assertIn("secretmem", machine.path(f"/proc/{pid}/maps").read_text())

    def test_only_the_keyprovider_has_mounts_of_its_own(self):
        def mount_namespace(pid):
            return machine.run("readlink", f"/proc/{pid}/ns/mnt").stdout
        snapshotter, keyprovider = (int(machine.show(unit, "MainPID"))
                                    for unit in (SNAPSHOTTER, KEYPROVIDER))
        self.assertEqual(mount_namespace(snapshotter), mount_namespace(1))
        self.assertNotEqual(mount_namespace(keyprovider), mount_namespace(1))

    def test_doctor_finds_nothing(self):
        checks = json.loads(machine.run("kapsule-ctl", "doctor", "--json", check=False).stdout)
        bad = [check for check in checks["checks"] if check["grade"] != "ok"]
        self.assertEqual(bad, [])

    def test_views_can_be_mounted_through_loop_devices(self):
        settings = machine.path("/etc/kapsule/snapshotter.toml")
        before = settings.read_text()

        def with_view_mount(text):
            machine.write("/etc/kapsule/snapshotter.toml", text)
            self.end_everything()
            machine.systemctl("start", SNAPSHOTTER)
            self.assert_reads()
            self.wait_for_health()

        with_view_mount(before.replace('view_mount = "auto"', 'view_mount = "loop"'))
        self.assertIn("/dev/loop", "".join(machine.mounts_of_kapsule()))
        with_view_mount(before)
        self.assertNotIn("/dev/loop", "".join(machine.mounts_of_kapsule()))

    def end_everything(self):
        """As the unit says; the service is stopped then."""
        machine.systemctl("kill", "--kill-whom=main", "--signal=SIGINT", SNAPSHOTTER)
        machine.systemctl("stop", SNAPSHOTTER)

    def test_readers_do_not_notice_a_restart(self):
        with self.reading():
            before = machine.pids(SNAPSHOTTER), machine.pids("kapsule-holder")
            machine.systemctl("restart", SNAPSHOTTER)
            self.wait_for_health()
            self.assertNotEqual((machine.pids(SNAPSHOTTER), machine.pids("kapsule-holder")), before)

    def test_readers_do_not_notice_that_anything_is_killed(self):
        for names in (("kapsule-fuse",), ("kapsule-fetch",), ("kapsule-snapshotter",),
                      ("kapsule-fuse", "kapsule-snapshotter"),
                      ("kapsule-fetch", "kapsule-snapshotter", "kapsule-fuse"),
                      ("kapsule-keyprovider",), ("containerd",),):
            with self.subTest(names=names), self.reading():
                killed = machine.kill(*names)
                self.assertEqual(len(killed), len(names))
                self.wait_for_health(killed)

    def test_the_service_manager_has_what_the_holder_held(self):
        with self.reading():
            stored = int(machine.show(SNAPSHOTTER, "NFileDescriptorStore"))
            self.assertGreater(stored, 0)
            killed = machine.kill("kapsule-snapshotter", "kapsule-holder", "kapsule-fuse")
            self.assertEqual(len(killed), 3)
            self.wait_for_health(killed)
        self.assertIn("the service manager gave back", machine.journal("-u", SNAPSHOTTER))

    def test_a_restart_heals_a_killed_holder(self):
        with self.reading():
            killed = machine.kill("kapsule-holder")
            self.wait_for(lambda: "kapsule-holder has ended" in machine.journal("-u", SNAPSHOTTER),
                          "the log says so")
            machine.systemctl("restart", SNAPSHOTTER)
            self.wait_for_health(killed)

    def test_services_are_started_again_however_often_they_end(self):
        units = SNAPSHOTTER, KEYPROVIDER
        killed = []
        for _ in range(7):  # within 10 s
            self.wait_for(lambda: all(set(machine.pids(unit)) - set(killed) for unit in units),
                          "both are started again")
            killed = machine.kill(*units)
        self.wait_for(lambda: all(machine.systemctl("is-active", unit, check=False) == "active\n"
                                  for unit in units), "both are ready")
        self.wait_for_health()
        self.assert_reads()

    def test_a_stop_leaves_readers_served_and_the_next_start_goes_on(self):
        with self.reading():
            before = machine.pids("kapsule-fuse")
            machine.systemctl("stop", SNAPSHOTTER)
            self.assertEqual(machine.systemctl("is-active", SNAPSHOTTER, check=False), "inactive\n")
            self.assertEqual(machine.pids("kapsule-fuse"), before)
            self.assertNotEqual(machine.mounts_of_kapsule(), [])
            time.sleep(0.5)
            machine.systemctl("start", SNAPSHOTTER)
            self.wait_for_health()
        self.assert_reads()

    def test_sigint_ends_everything(self):
        self.assert_reads()
        self.end_everything()
        # Of those that an earlier run left, systemd is the parent, and may be slow to notice.
        self.wait_for(lambda: not any(machine.pids(name) for name in DATA_PLANE), "all have ended")
        self.assertEqual(machine.mounts_of_kapsule(), [])
        self.assertEqual(machine.show(SNAPSHOTTER, "NFileDescriptorStore"), "0")
        machine.systemctl("start", SNAPSHOTTER)
        self.assert_reads()

    def test_a_key_is_there_after_a_reload_and_a_restart(self):
        theirs = publisher.build(machine, "theirs", key="theirs")
        machine.pull(theirs)
        done = machine.run_container(theirs, "/bin/sha256sum", MODEL, check=False)
        self.assertIn("no wrapped key", done.stderr)
        machine.install_key("theirs", publisher.key("theirs"))
        pid = machine.show(KEYPROVIDER, "MainPID")
        machine.systemctl("reload", KEYPROVIDER)
        # `systemctl reload` does not wait for it.
        self.wait_for(lambda: machine.run_container(theirs, "/bin/sh", "-c", ":",
                                                    check=False).returncode == 0, "the key")
        self.assert_reads(theirs)
        self.assertEqual(machine.show(KEYPROVIDER, "MainPID"), pid)
        machine.systemctl("restart", KEYPROVIDER)
        again = publisher.build(machine, "again", key="theirs")
        machine.pull(again)
        self.assert_reads(again)

    def test_after_a_reboot_services_come_in_order_and_images_are_there(self):
        machine.power_off()
        machine.boot()
        keys, snapshots, containerd = map(self.started_and_ready,
                                          (KEYPROVIDER, SNAPSHOTTER, "containerd"))
        self.assertLessEqual(keys[1], snapshots[0])
        self.assertLessEqual(snapshots[1], containerd[0])
        self.assert_reads()
        self.assertEqual(machine.systemctl("--failed", "--plain", "--no-legend"), "")


if __name__ == "__main__":
    unittest.main()
