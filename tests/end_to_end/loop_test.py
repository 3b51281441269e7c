"""A node whose kernel has no file-backed EROFS: views on loop devices.

Needs root and the programs of build/bin (KAPSULE_BIN names another folder).
"""

import os
import pathlib
import shutil
import signal
import tempfile
import time
import unittest

from node import BIN, PROJECT, Node, make_base_image, run, sha256_of

MODEL = "/models/tiny/model.gguf"


def loops_of(node):
    """sysfs folders of loop devices whose file is a view of this node."""
    loops = []
    for file in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if file.read_text().startswith(f"{node.kapsule_root}/views/"):
                loops.append(file.parents[1])
        except OSError:  # detached meanwhile
            pass
    return loops


class LoopTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-loop-"))
        cls.addClassCleanup(shutil.rmtree, cls.work)
        model = cls.work / "tiny.gguf"
        run(PROJECT / "scripts" / "make-tiny-gguf", model, "--pad-mib", 20)
        cls.digest = sha256_of(model)
        (cls.work / "Modelfile").write_text(f"FROM {model}\n")
        run(BIN / "kapsule-ctl", "keys", "generate", "--type", "ec-p256", "-o", cls.work / "keys")
        cls.node = Node(view_mount="loop")
        cls.addClassCleanup(cls.end)
        cls.node.start_all()
        cls.node.install_key(cls.work / "keys" / "private.pem")
        cls.image = f"{cls.node.registry}/acme/tiny:enc"
        run(BIN / "kapsule-ctl", "build", "-f", cls.work / "Modelfile", "-t", cls.image, "--insecure",
            "--encryption-key", cls.work / "keys" / "public.pem",
            "--base", make_base_image(cls.work / "base", BIN / "probe"), cls.work)
        cls.node.pull(cls.image)

    @classmethod
    def end(cls):
        cls.node.stop()
        deadline = time.monotonic() + 20
        while (left := loops_of(cls.node)) and time.monotonic() < deadline:
            time.sleep(0.1)  # the kernel detaches them when the last one has closed them
        if left:
            raise AssertionError(f"loop devices are left: {left}")

    def digest_in_container(self, *command):
        return self.node.run_container(self.image, *command).stdout.split()[0]

    def test_every_view_is_read_through_a_loop_device_that_reads_ahead(self):
        self.assertEqual(self.digest_in_container("/bin/sha256sum", MODEL), self.digest)
        loops = loops_of(self.node)
        self.assertGreater(len(loops), 0)
        for loop in loops:
            self.assertEqual((loop / "loop/dio").read_text(), "1\n")
            self.assertEqual((loop / "queue/read_ahead_kb").read_text(), "2048\n")

    def test_a_container_reads_with_o_direct(self):
        self.assertEqual(self.digest_in_container(
            "/bin/sh", "-c", f"dd if={MODEL} iflag=direct bs=1M 2>/dev/null | sha256sum"), self.digest)

    def test_no_change_is_allowed(self):
        done = self.node.run_container(self.image, "/bin/probe", "change", MODEL, check=False)
        self.assertEqual(done.stdout.strip(), "all refused", done.stderr)

    def test_reads_go_on_when_kapsule_fuse_is_killed(self):
        for _ in range(3):
            os.kill(self.node.fuse_pids()[0], signal.SIGKILL)
            self.node.forget_pages(MODEL)
            self.assertEqual(self.digest_in_container("/bin/sha256sum", MODEL), self.digest)


if __name__ == "__main__":
    unittest.main()
