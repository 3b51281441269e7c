"""Bad input end to end: every refusal has one clear message and leaves nothing behind."""

import hashlib
import json
import pathlib
import shutil
import signal
import tempfile
import time
import unittest

from node import BIN, PROJECT, Node, make_base_image, run, sha256_of
from repository import Repository

MODEL = "/models/tiny/model.gguf"


def setUpModule():
    global work, node, base, repository
    work = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-hostile-"))
    unittest.addModuleCleanup(shutil.rmtree, work)
    run(PROJECT / "scripts" / "make-tiny-gguf", work / "tiny.gguf", "--pad-mib", 4)
    for name in ("ours", "theirs"):
        run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-2048", "-o", work / name)
    base = make_base_image(work / "base", BIN / "probe")
    node = Node()
    repository = Repository(node.registry, "acme/tiny")
    try:
        node.start_all()
        node.install_key(work / "ours" / "private.pem")
    except BaseException:
        node.stop()
        raise


def tearDownModule():
    node.stop()


def build(tag, key="ours", model="tiny.gguf"):
    """A fresh image: every encrypted build has layers of its own. `key` None: a plain one."""
    image = repository.name(tag)
    modelfile = work / f"Modelfile-{tag}"
    modelfile.write_text(f"FROM {work}/{model}\n")
    encryption = ["--encryption-key", work / key / "public.pem"] if key else []
    run(BIN / "kapsule-ctl", "build", "-f", modelfile, "-t", image, "--insecure", *encryption,
        "--base", base, work)
    return image


class HostileTest(unittest.TestCase):
    def snapshots(self):
        return set(node.ctr("snapshots", "--snapshotter", "kapsule", "list").stdout.split("\n"))

    def assert_refused(self, image, *words):
        """The container does not start, says why, and leaves no snapshot."""
        before = self.snapshots()
        done = node.run_container(image, "/bin/sha256sum", MODEL, check=False)
        self.assertNotEqual(done.returncode, 0)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertEqual(self.snapshots() - before, set())
        return done.stderr

    def assert_starts_in_time(self, image):
        deadline = time.monotonic() + 60
        while node.run_container(image, "/bin/sha256sum", MODEL, check=False).returncode != 0:
            self.assertLess(time.monotonic(), deadline, node.log("snapshotter")[-2000:])

    def blob(self, tag, layer=1):
        digest = repository.manifest(tag)["layers"][layer]["digest"].split(":")[1]
        return node.containerd_root / "io.containerd.content.v1.content/blobs/sha256" / digest

    def flip(self, path, offset):
        path.chmod(0o600)
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))

    def restart_snapshotter(self):
        """With a new data plane: it opens every layer again."""
        node.stop_daemon("snapshotter", signal.SIGINT)
        node.start_snapshotter()

    def test_an_image_for_another_key_does_not_start(self):
        image = build("theirs", key="theirs")
        node.pull(image)
        self.assert_refused(image, "layer 1", "no")

    def test_the_right_key_starts_it_later(self):
        image = build("later", key="theirs")
        node.pull(image)
        self.assert_refused(image)
        node.install_key(work / "theirs" / "private.pem", "second.pem")
        try:
            self.assert_starts_in_time(image)
        finally:
            (node.keys / "second.pem").unlink()
            node.daemons["keyprovider"].send_signal(signal.SIGHUP)
            time.sleep(0.3)

    def test_without_keyprovider_it_says_so_and_heals_when_it_is_back(self):
        image = build("down")
        node.stop_daemon("keyprovider")
        try:
            node.pull(image)
            self.assert_refused(image, "keys.sock")
        finally:
            node.start_keyprovider()
        self.assert_starts_in_time(image)

    def test_a_flipped_byte_is_an_error_and_never_wrong_bytes(self):
        image = build("flipped")
        node.pull(image)
        node.run_container(image, "/bin/ls", MODEL)
        self.flip(self.blob("flipped"), 2 << 20)
        out = node.run_container(image, "/bin/cat", MODEL, check=False)
        self.assertRegex(out.stderr, "(Input/output|I/O) error")
        out = node.run_container(image, "/bin/sh", "-c", f"/bin/probe mmap {MODEL} > /dev/null; echo $?")
        self.assertEqual(out.stdout.split()[-1], "135")  # SIGBUS
        self.assertIn("chunk", node.log("snapshotter"))

    def test_a_bad_header_or_index_or_toc_does_not_mount(self):
        image = build("header")
        node.pull(image)
        node.run_container(image, "/bin/ls", MODEL)
        path = self.blob("header")
        self.flip(path, path.stat().st_size - 200)
        self.restart_snapshotter()
        self.assert_refused(image, "layer 1", "header")

    def test_a_truncated_blob_does_not_mount(self):
        image = build("short")
        node.pull(image)
        node.run_container(image, "/bin/ls", MODEL)
        path = self.blob("short")
        path.chmod(0o600)
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - 1)
        self.restart_snapshotter()
        self.assert_refused(image, "layer 1")

    def test_reusing_diff_ids_with_other_keys_opens_nothing(self):
        victim = build("victim")
        node.pull(victim)
        node.run_container(victim, "/bin/ls", MODEL)
        build("attacker")
        forged, attacker = repository.manifest("victim"), repository.manifest("attacker")
        for mine, theirs in zip(forged["layers"], attacker["layers"]):
            for name, value in theirs.get("annotations", {}).items():
                if name.startswith("org.opencontainers.image.enc."):
                    mine["annotations"][name] = value
        image = repository.put_manifest("forged", forged)
        node.pull(image, namespace="thief")
        done = node.run_container(image, "/bin/sha256sum", MODEL, check=False, namespace="thief")
        self.assertNotEqual(done.returncode, 0, "a forged image read the victim's model")
        self.assertIn("layer 1", done.stderr)
        node.run_container(victim, "/bin/ls", MODEL)

    def test_no_keys_at_all_for_a_shared_chain_opens_nothing(self):
        victim = build("victim2")
        node.pull(victim)
        node.run_container(victim, "/bin/ls", MODEL)
        forged = repository.manifest("victim2")
        for layer in forged["layers"]:
            for name in list(layer.get("annotations", {})):
                if name.startswith("org.opencontainers.image.enc."):
                    del layer["annotations"][name]
        image = repository.put_manifest("keyless", forged)
        node.pull(image, check=False, namespace="thief2")
        done = node.run_container(image, "/bin/sha256sum", MODEL, check=False, namespace="thief2")
        self.assertNotEqual(done.returncode, 0)

    def make_evil_model(self):
        evil = work / "evil" / "tiny.gguf"
        evil.parent.mkdir(exist_ok=True)
        evil.write_bytes((work / "tiny.gguf").read_bytes() + b"evil")
        return sha256_of(work / "tiny.gguf"), sha256_of(evil)

    def test_a_plain_image_with_the_diff_ids_of_another_is_never_what_its_containers_see(self):
        genuine, _ = self.make_evil_model()
        for tag, namespace, layers in (("squat-all", "default", (0, 1, 2)),
                                       ("squat-model", "default", (1,)),
                                       ("squat-elsewhere", "thief3", (0, 1, 2))):
            with self.subTest(tag):
                victim = build(tag)
                build(f"{tag}-evil", key=None, model="evil/tiny.gguf")
                # Plain, labelled and whole layers under the victim's chain ids.
                manifest, theirs = repository.manifest(tag), repository.manifest(f"{tag}-evil")
                for layer in layers:
                    manifest["layers"][layer] = theirs["layers"][layer]
                config = repository.document(manifest["config"]["digest"])
                config["author"] = "thief"
                manifest["config"].update(repository.put_document(config))
                squatter = repository.put_manifest(f"{tag}-squatter", manifest)
                node.pull(squatter, check=False, namespace=namespace)
                node.pull(victim, check=False)  # may find one layer unpacked already
                node.pull(victim)
                out = node.run_container(victim, "/bin/sha256sum", MODEL)
                self.assertEqual(out.stdout.split()[0], genuine)
                for anywhere in {"default", namespace}:
                    done = node.run_container(squatter, "/bin/sha256sum", MODEL, check=False,
                                              namespace=anywhere)
                    self.assertNotEqual(done.returncode, 0)
                    self.assertEqual(done.stdout, "")

    def test_an_encrypted_image_with_the_diff_ids_of_another_is_never_what_its_containers_see(self):
        genuine, evil = self.make_evil_model()
        victim = build("taken")
        build("taken-evil", model="evil/tiny.gguf")  # for the node's own key
        manifest = repository.manifest("taken")
        manifest["layers"][1] = repository.manifest("taken-evil")["layers"][1]
        squatter = repository.put_manifest("taken-squatter", manifest)
        node.pull(squatter)
        node.pull(victim)
        done = node.run_container(victim, "/bin/sha256sum", MODEL, check=False)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        self.assertIn("layer 1", done.stderr)
        self.assertNotIn(evil, done.stdout)
        # The way out.
        for image in (squatter, victim):
            node.ctr("images", "remove", "--sync", image)
        node.pull(victim)
        out = node.run_container(victim, "/bin/sha256sum", MODEL)
        self.assertEqual(out.stdout.split()[0], genuine)

    def test_the_snapshotter_opens_as_many_files_as_it_may(self):
        for pid in [node.daemons["snapshotter"].pid, *node.fuse_pids()]:
            limits = pathlib.Path(f"/proc/{pid}/limits").read_text().splitlines()
            soft, hard = next(line for line in limits if line.startswith("Max open files")).split()[3:5]
            self.assertEqual(soft, hard, pid)

    def test_wrong_roots_versions_and_offsets_in_annotations_are_refused(self):
        build("lies")
        good = json.dumps(repository.manifest("lies"))
        for name, change in {
            "root": lambda ref: ref.update(root="sha256:" + hashlib.sha256(b"x").hexdigest()),
            "version": lambda ref: ref.update(version=99),
            "offset": lambda ref: ref.update(offset=2**63),
            "length": lambda ref: ref.update(length=2**40),
            "shape": lambda ref: ref.clear(),
        }.items():
            with self.subTest(name):
                manifest = json.loads(good)
                annotations = manifest["layers"][1]["annotations"]
                ref = json.loads(annotations["io.kapsule.index"])
                change(ref)
                annotations["io.kapsule.index"] = json.dumps(ref)
                image = repository.put_manifest(f"lies-{name}", manifest)
                node.pull(image, namespace=f"lies-{name}")
                done = node.run_container(image, "/bin/ls", MODEL, check=False, namespace=f"lies-{name}")
                self.assertNotEqual(done.returncode, 0, name)
                self.assertIn("layer 1", done.stderr)

    def test_killing_daemons_while_opening_leaves_a_working_node(self):
        image = build("kills")
        node.pull(image)
        for pid in node.fuse_pids():
            run("kill", "-9", pid)
        node.stop_daemon("snapshotter", signal.SIGKILL)
        node.start_snapshotter()
        node.run_container(image, "/bin/sha256sum", MODEL)

    def test_logs_hold_no_key(self):
        image = build("logs")
        node.pull(image)
        node.run_container(image, "/bin/ls", MODEL)
        wrapped = repository.manifest("logs")["layers"][1]["annotations"]["org.opencontainers.image.enc.keys.jwe"]
        for name in ("snapshotter", "keyprovider", "containerd"):
            self.assertNotIn(wrapped[:60], node.log(name))
            self.assertNotIn("symkey", node.log(name))


if __name__ == "__main__":
    unittest.main()
