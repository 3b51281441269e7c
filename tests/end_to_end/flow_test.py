"""The main job with real parts: containerd, runc, docker-registry, skopeo, FUSE, EROFS.

Needs root and the programs of build/bin (KAPSULE_BIN names another folder).
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

from node import BIN, PROJECT, Node, make_base_image, mounts_below, run, sha256_of, unique_name

MARKER = "kapsule-marker-0d5c7a31-0123456789abcdef0123456789abcdef01234567"  # 64 bytes
MODEL = "/models/tiny/model.gguf"
PATIENCE_SECONDS = 60


def setUpModule():
    global work, node, image, model, digest
    work = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-flow-"))
    unittest.addModuleCleanup(shutil.rmtree, work)
    model = work / "tiny.gguf"
    run(PROJECT / "scripts" / "make-tiny-gguf", model, "--marker", MARKER, "--pad-mib", 20)
    digest = sha256_of(model)
    (work / "Modelfile").write_text(f"FROM {model}\nSYSTEM Be brief.\nPARAMETER temperature 0.2\n")
    run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-4096", "-o", work / "keys")
    base = make_base_image(work / "base", BIN / "probe")
    node = Node()
    try:
        node.start_all()
        node.install_key(work / "keys" / "private.pem")
        image = f"{node.registry}/acme/tiny:enc"
        run(BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "-t", image, "--insecure",
            "--encryption-key", work / "keys" / "public.pem", "--base", base, work)
        node.pull(image)
    except BaseException:
        node.stop()
        raise


def tearDownModule():
    node.stop()


class FlowTest(unittest.TestCase):
    def in_container(self, *command, **options):
        return node.run_container(image, *command, **options)

    @contextlib.contextmanager
    def sleeping(self, image_name):
        """The name of a running container."""
        name = unique_name()
        node.ctr("run", "-d", "--snapshotter", "kapsule", image_name, name, "/bin/sleep", "1000")
        try:
            yield name
        finally:
            node.ctr("tasks", "kill", "-s", "KILL", name)
            node.ctr("tasks", "delete", "-f", name, check=False)
            node.ctr("containers", "delete", name)

    def wait_for(self, condition, what):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self.assertLess(time.monotonic(), deadline,
                            f"not so: {what}:\n{node.log('snapshotter')[-3000:]}")
            time.sleep(0.05)

    @contextlib.contextmanager
    def reading(self):
        """A container that reads the whole model again and again, and only ever right."""
        with self.sleeping(image) as name:
            script = f"while [ ! -e /tmp/stop ]; do sha256sum {MODEL} || echo failed; done"
            out = work / f"{name}.out"
            with open(out, "w") as file:
                reader = subprocess.Popen(
                    ["ctr", "--address", node.socket, "tasks", "exec", "--exec-id", "reader", name,
                     "/bin/sh", "-c", script], stdout=file, stderr=subprocess.STDOUT)

            def lines():
                return out.read_text().splitlines()

            done = threading.Event()

            def forget():
                while not done.wait(0.02):
                    node.forget_pages(MODEL)

            forgetter = threading.Thread(target=forget)
            forgetter.start()
            try:
                self.wait_for(lines, "it reads")
                yield
                # The second of these began after all that happened.
                seen = len(lines())
                self.wait_for(lambda: len(lines()) > seen + 1, "it reads on")
            finally:
                done.set()
                forgetter.join()
                node.ctr("tasks", "exec", "--exec-id", "stop", name, "/bin/sh", "-c", ": > /tmp/stop")
                reader.wait(PATIENCE_SECONDS)
        self.assertGreater(len(lines()), 1)
        self.assertEqual(set(lines()), {f"{digest}  {MODEL}"})

    def wait_for_other_fuse(self, before):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            pids = node.fuse_pids()
            if len(pids) == 1 and pids != before:
                return pids
            time.sleep(0.02)
        self.fail(f"no successor of {before}:\n{node.log('snapshotter')[-3000:]}")

    def status(self):
        return json.loads(run(BIN / "kapsule-ctl", "status", "--json", "--address",
                              node.folder / "snapshotter.sock").stdout)

    def names_of_model(self):
        found = self.in_container("/bin/find", "/models", "/ollama", "/hf", "-type", "f",
                                  "-size", "+1000k").stdout.split()
        self.assertEqual(len(found), 3, found)
        return found

    def test_every_layout_shows_the_models_own_bytes(self):
        for name in self.names_of_model():
            self.assertEqual(self.in_container("/bin/sha256sum", name).stdout.split()[0], digest)

    def test_all_names_of_the_model_are_one_inode(self):
        names = self.names_of_model()
        inodes = self.in_container("/bin/stat", "-c", "%d:%i %h", *names).stdout.split("\n")[:-1]
        self.assertEqual(len(set(inodes)), 1, inodes)
        self.assertTrue(inodes[0].endswith(" 3"), inodes)
        self.assertIn(f"/ollama/models/blobs/sha256-{digest}", names)

    def test_mmap_and_reads_at_any_offset_agree_with_the_source(self):
        for way in ("mmap", "pieces"):
            out = self.in_container("/bin/sh", "-c", f"/bin/probe {way} {MODEL} | sha256sum").stdout
            self.assertEqual(out.split()[0], digest, way)

    def test_any_user_reads(self):
        with self.sleeping(image) as name:
            out = node.ctr("tasks", "exec", "--exec-id", "e1", "--user", "1234:1234", name,
                           "/bin/sha256sum", MODEL).stdout
        self.assertEqual(out.split()[0], digest)

    def test_small_files_are_there(self):
        params = self.in_container("/bin/sh", "-c",
                                   "cat /ollama/models/manifests/*/acme/tiny/enc").stdout
        self.assertEqual(json.loads(params)["layers"][0]["digest"], f"sha256:{digest}")
        environment = self.in_container("/bin/sh", "-c", "echo $OLLAMA_MODELS $HF_HUB_CACHE").stdout
        self.assertEqual(environment.split(), ["/ollama/models", "/hf/hub"])

    def test_no_change_is_allowed_and_nothing_reaches_the_disk(self):
        for name in self.names_of_model():
            done = self.in_container("/bin/probe", "change", name, check=False)
            self.assertEqual(done.stdout.strip(), "all refused", done.stderr)
            self.assertEqual(self.in_container("/bin/sha256sum", name).stdout.split()[0], digest)
        self.assertEqual(node.files_with(MARKER), [])

    def test_the_marker_would_be_found(self):
        planted = node.folder / "logs" / "planted"
        planted.write_bytes(model.read_bytes())
        self.assertEqual(node.files_with(MARKER), [str(planted)])
        planted.unlink()

    def test_skopeo_decrypts_to_the_plain_digests(self):
        out = work / "decrypted"
        run("skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", "--decryption-key",
            work / "keys" / "private.pem", f"docker://{image}", f"dir:{out}")
        manifest = json.loads((out / "manifest.json").read_text())
        config = json.loads((out / manifest["config"]["digest"].split(":")[1]).read_text())
        self.assertNotIn("encrypted", json.dumps([layer["mediaType"] for layer in manifest["layers"]]))
        for layer, diff_id in list(zip(manifest["layers"], config["rootfs"]["diff_ids"]))[:-1]:
            self.assertEqual(layer["digest"], diff_id)
        weights = out / manifest["layers"][1]["digest"].split(":")[1]
        listed = run("tar", "-tf", weights, check=False).stdout
        self.assertIn("models/tiny/model.gguf", listed)
        run("tar", "-xf", weights, "-C", work, "models/tiny/model.gguf", check=False)
        self.assertEqual(sha256_of(work / "models/tiny/model.gguf"), digest)

    def test_pulling_again_and_in_another_namespace_works(self):
        node.pull(image)
        node.pull(image, namespace="other")
        out = node.run_container(image, "/bin/sha256sum", MODEL, namespace="other").stdout
        self.assertEqual(out.split()[0], digest)

    def test_a_container_outlives_its_image(self):
        second = f"{node.registry}/acme/second:enc"
        (work / "Second").write_text(f"FROM {model}\n")
        run(BIN / "kapsule-ctl", "build", "-f", work / "Second", "-t", second, "--insecure",
            "--encryption-key", work / "keys" / "public.pem", "--base", f"oci:{work}/base:base", work)
        node.pull(second)
        with self.sleeping(second) as name:
            node.ctr("images", "remove", "--sync", second)
            out = node.ctr("tasks", "exec", "--exec-id", "e1", name, "/bin/sha256sum",
                           "/models/second/model.gguf").stdout
        self.assertEqual(out.split()[0], digest)

    def test_a_container_reads_on_while_the_data_plane_is_killed(self):
        with self.reading():
            pids = node.fuse_pids()
            self.assertEqual(len(pids), 1)
            for _ in range(5):
                os.kill(pids[0], signal.SIGKILL)
                pids = self.wait_for_other_fuse(pids)
                time.sleep(0.3)

    def test_a_container_reads_on_while_the_snapshotter_is_killed(self):
        with self.reading():
            before, mounts = node.fuse_pids(), mounts_below(node.kapsule_root)
            node.stop_daemon("snapshotter", signal.SIGKILL)
            time.sleep(0.5)
            node.start_snapshotter()
            self.assertEqual(node.fuse_pids(), before, node.log("snapshotter")[-3000:])
            self.assertEqual(mounts_below(node.kapsule_root), mounts)
            self.assertEqual(self.in_container("/bin/sha256sum", MODEL).stdout.split()[0], digest)

    def test_a_container_reads_on_while_all_but_the_holder_are_killed(self):
        with self.reading():
            before = node.fuse_pids()
            for _ in range(2):
                node.stop_daemon("snapshotter", signal.SIGKILL)
                os.kill(node.fuse_pids()[0], signal.SIGKILL)
                node.start_snapshotter()
                before = self.wait_for_other_fuse(before)
            self.assertEqual(self.in_container("/bin/sha256sum", MODEL).stdout.split()[0], digest)

    def test_a_container_reads_on_while_the_snapshotter_is_restarted(self):
        with self.reading():
            before = node.fuse_pids()
            self.assertEqual(node.stop_daemon("snapshotter"), 0)
            self.assertEqual(node.fuse_pids(), before, node.log("snapshotter")[-3000:])
            time.sleep(0.5)
            node.start_snapshotter()
            self.assertEqual(node.fuse_pids(), before, node.log("snapshotter")[-3000:])
            self.assertEqual(self.in_container("/bin/sha256sum", MODEL).stdout.split()[0], digest)

    def test_restarted_daemons_serve_what_was_pulled(self):
        node.stop_daemon("containerd")
        self.assertEqual(node.stop_daemon("snapshotter", signal.SIGINT), 0)
        self.assertEqual(mounts_below(node.kapsule_root), [])
        self.assertEqual(node.fuse_pids() + node.holder_pids(), [])
        node.start_snapshotter()
        node.start_containerd()
        self.assertEqual(self.in_container("/bin/sha256sum", MODEL).stdout.split()[0], digest)

    def test_without_holder_containers_read_on_until_the_data_plane_dies(self):
        with self.reading():
            before = node.fuse_pids()
            os.kill(node.holder_pids()[0], signal.SIGKILL)
            self.wait_for(lambda: "failover is off" in node.log("snapshotter"), "its end is seen")
            self.assertEqual(node.fuse_pids(), before, node.log("snapshotter")[-3000:])
            self.wait_for(lambda: not self.status()["failover"], "its end is told")
        os.kill(before[0], signal.SIGKILL)
        self.wait_for_other_fuse(before)
        read = "/bin/sha256sum", MODEL
        self.wait_for(lambda: self.in_container(*read, check=False).returncode == 0, "it heals")
        self.assertEqual(len(node.holder_pids()), 1)
        self.assertTrue(self.status()["failover"])

    def test_an_ordinary_image_runs_as_with_overlayfs(self):
        plain = f"{node.registry}/library/plain:1"
        run("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false",
            f"oci:{work}/base:base", f"docker://{plain}")
        node.pull(plain)
        out = node.run_container(plain, "/bin/sh", "-c", "echo x > /new && cat /new && ls /bin/probe")
        self.assertEqual(out.stdout.split(), ["x", "/bin/probe"])


if __name__ == "__main__":
    unittest.main()
