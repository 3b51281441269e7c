"""Pods that read an encrypted model from its registry while they run.

Needs root and the programs of build/bin (KAPSULE_BIN names another folder).
"""

import concurrent.futures
import contextlib
import http.client
import http.server
import json
import os
import pathlib
import shutil
import signal
import tempfile
import threading
import time
import unittest

from cri_node import PODS, CriError, CriNode
from node import BIN, PROJECT, CommandFailed, make_base_image, run, sha256_of

MODEL = "/models/tiny/model.gguf"
MIB = 48
WEIGHTS = 1  # position of the layer with the model's file
STORED_AFTER = 20  # seconds; then a new kapsule-fetch knows what the one before fetched
FETCH_SECONDS = 15  # that a read waits for its registry
PATIENCE_SECONDS = 90


def setUpModule():
    global work, digest
    work = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-lazy-"))
    unittest.addModuleCleanup(shutil.rmtree, work)
    model = work / "tiny.gguf"
    run(PROJECT / "scripts" / "make-tiny-gguf", model)
    with open(model, "ab") as file:
        for _ in range(MIB):
            file.write(os.urandom(1 << 20))
    digest = sha256_of(model)
    (work / "Modelfile").write_text(f"FROM {model}\n")
    run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-2048", "-o", work / "keys")
    make_base_image(work / "base", BIN / "probe")
    make_base_image(work / "pause")


class Proxy(http.server.ThreadingHTTPServer):
    """A registry's front that can misbehave; `lie` changes the answers to range requests:
    called with status, headers and body, it returns them, or None to hang until it is None."""

    def __init__(self, registry):
        self.registry, self.lie, self.ranges = registry, None, 0
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.address = f"127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()

    def close(self):
        self.lie = None
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, *_):
        pass  # a client that has gone

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            server = self.server
            connection = http.client.HTTPConnection(server.registry)
            connection.request(self.command, self.path,
                               headers={k: v for k, v in self.headers.items() if k != "Host"})
            answer = connection.getresponse()
            status, headers, body = answer.status, dict(answer.getheaders()), answer.read()
            connection.close()
            if "Range" in self.headers and status == 206:
                server.ranges += 1
                lie = server.lie
                result = lie(status, headers, body) if lie else (status, headers, body)
                while result is None and server.lie is lie:
                    time.sleep(0.05)
                if result is None:
                    self.close_connection = True
                    return
                status, headers, body = result
            self.send_response(status)
            for key, value in headers.items():
                if key.lower() not in ("transfer-encoding", "date", "server"):
                    self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET


class LazyTest(unittest.TestCase):
    settings = f'fetch_fill = "off"\nfetch_timeout_ms = {FETCH_SECONDS * 1000}\n'

    def setUp(self):
        self.node = CriNode(settings=self.settings)
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        node = self.node
        try:
            node.start_for_pods(work / "pause", work / "keys" / "private.pem")
            self.proxy = Proxy(node.registry)
            self.stack.callback(self.proxy.close)
            self.image = f"{self.proxy.address}/acme/tiny:enc"
            run(BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "-t",
                f"{node.registry}/acme/tiny:enc", "--insecure", "--encryption-key",
                work / "keys" / "public.pem", "--base", f"oci:{work / 'base'}:base", work)
            self.layer = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false",
                                        f"docker://{node.registry}/acme/tiny:enc").stdout
                                    )["layers"][WEIGHTS]["digest"]
            node.pull_image(self.image)
            self.pod = node.run_pod()
        except BaseException:
            node.stop()
            raise
        self.addCleanup(node.stop)

    def start(self):
        return self.pod.start(self.image)

    def read(self, container):
        return container.run("/bin/sha256sum", MODEL).split()[0]

    def log(self):
        return self.node.log("snapshotter")

    def cached(self):
        return self.node.folder / "fetched" / self.layer.split(":")[1]

    def assert_fails(self, container, *words):
        with self.assertRaisesRegex(CommandFailed, "Input/output error"):
            self.read(container)
        for word in words:
            self.assertIn(word, self.log())

    def wait_for(self, condition, what):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"not so: {what}:\n{self.log()[-2000:]}")
            time.sleep(0.1)

    def assert_heals(self, container):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.assertEqual(self.read(container), digest)
            except CommandFailed:
                self.assertLess(time.monotonic(), deadline)

    def test_a_container_starts_before_the_model_is_there_and_reads_all_of_it(self):
        container = self.start()
        before = self.proxy.ranges
        allocated = self.cached().stat().st_blocks * 512
        self.assertLess(allocated, MIB << 19, "the whole model was fetched before it was read")
        self.assertEqual(self.read(container), digest)
        self.assertGreater(self.proxy.ranges, before)
        store = self.node.containerd_root / "io.containerd.content.v1.content" / "blobs"
        self.assertFalse((store / self.layer.replace(":", "/")).exists())
        # All is there now.
        fetched = self.proxy.ranges
        self.node.forget_pages(MODEL)
        self.assertEqual(self.read(container), digest)
        self.assertEqual(self.proxy.ranges, fetched)

    def test_reads_wait_for_a_registry_that_is_away_for_a_while(self):
        container = self.start()
        self.node.stop_daemon("registry")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            reading = pool.submit(self.read, container)
            time.sleep(3)
            self.assertFalse(reading.done())
            self.node.start_registry()
            self.assertEqual(reading.result(PATIENCE_SECONDS), digest)

    def test_reads_fail_after_their_time_and_work_when_the_registry_is_back(self):
        container = self.start()
        self.node.stop_daemon("registry")
        begun = time.monotonic()
        self.assert_fails(container, self.image.split("/")[0], self.layer)
        self.assertLess(time.monotonic() - begun, 4 * FETCH_SECONDS)
        self.node.start_registry()
        self.assert_heals(container)

    def test_every_process_may_be_killed_while_a_pod_reads(self):
        container = self.start()
        wrong = []
        done = threading.Event()

        def keep_reading():
            while not done.is_set():
                self.node.forget_pages(MODEL)
                if self.read(container) != digest:
                    wrong.append("digest")

        with concurrent.futures.ThreadPoolExecutor() as pool:
            reading = pool.submit(keep_reading)
            try:
                for victims in (["kapsule-fetch"], ["kapsule-fuse"], ["kapsule-fetch", "kapsule-fuse"]):
                    for victim in victims:
                        for pid in self.node.pids_of(victim):
                            os.kill(pid, signal.SIGKILL)
                    time.sleep(1.5)
                self.node.stop_daemon("snapshotter", signal.SIGKILL)
                for pid in self.node.pids_of("kapsule-fetch") + self.node.fuse_pids():
                    os.kill(pid, signal.SIGKILL)
                time.sleep(1)
                self.node.start_snapshotter()
                time.sleep(2)
            finally:
                done.set()
            reading.result(PATIENCE_SECONDS)
        self.assertEqual(wrong, [])
        self.assertEqual(self.read(container), digest)

    def test_a_damaged_cache_is_mended_from_the_registry(self):
        container = self.start()
        self.assertEqual(self.read(container), digest)
        with open(self.cached(), "r+b") as file:
            for offset in range(1 << 20, MIB << 20, 5 << 20):
                file.seek(offset)
                file.write(b"\0" * 8192)
            file.flush()
            os.fsync(file.fileno())
        self.node.forget_pages(MODEL)
        before = self.proxy.ranges
        self.assertEqual(self.read(container), digest)
        self.assertGreater(self.proxy.ranges, before)

    def lose_cache(self, lose):
        """Reads a part, then has `lose` take the file in the cache away from a kapsule-fetch
        that is killed, and reads all."""
        container = self.start()
        container.run("/bin/sh", "-c", f"head -c {9 << 20} {MODEL} > /dev/null")
        before = self.proxy.ranges
        lose(self.cached())
        for pid in self.node.pids_of("kapsule-fetch"):
            os.kill(pid, signal.SIGKILL)
        self.node.forget_pages(MODEL)
        begun = time.monotonic()
        self.assertEqual(self.read(container), digest)
        self.assertLess(time.monotonic() - begun, 4 * FETCH_SECONDS)
        self.assertGreater(self.proxy.ranges, before)
        # A successor of kapsule-fuse reads the new file.
        for pid in self.node.fuse_pids():
            os.kill(pid, signal.SIGKILL)
        self.node.forget_pages(MODEL)
        self.assertEqual(self.read(container), digest)

    def test_a_cached_file_that_was_removed_is_fetched_anew_for_the_same_mount(self):
        self.lose_cache(lambda path: path.unlink())

    def test_a_cached_file_that_was_moved_away_is_fetched_anew_for_the_same_mount(self):
        self.lose_cache(lambda path: path.rename(self.node.folder / "moved"))

    def test_a_cached_file_that_was_replaced_is_fetched_anew_for_the_same_mount(self):
        def replace(path):
            owner = path.stat()
            other = path.with_name("other")
            other.write_bytes(b"x" * owner.st_size)
            os.chown(other, owner.st_uid, owner.st_gid)
            other.chmod(0o600)
            other.rename(path)
        self.lose_cache(replace)

    def test_a_cached_file_may_be_removed_while_it_is_used(self):
        container = self.start()
        self.cached().unlink()
        self.assertEqual(self.read(container), digest)

    def test_a_registry_that_gives_other_bytes_is_never_believed(self):
        container = self.start()
        self.proxy.lie = lambda status, headers, body: (
            status, headers, bytes(byte ^ 0x40 for byte in body[:100]) + body[100:])
        self.assert_fails(container, self.layer)
        self.proxy.lie = None
        self.assert_heals(container)

    def test_a_registry_that_hangs_delays_no_other_layer(self):
        container = self.start()
        before = self.proxy.ranges
        self.proxy.lie = lambda *_: None
        with concurrent.futures.ThreadPoolExecutor() as pool:
            reading = pool.submit(self.read, container)
            self.wait_for(lambda: self.proxy.ranges > before, "the registry is asked")
            begun = time.monotonic()
            container.run("/bin/ls", "/ollama/models/manifests")
            container.run("/bin/sha256sum", "/models/tiny/Modelfile")
            # With the other layer they would wait for as long as its reads do.
            self.assertLess(time.monotonic() - begun, 2 / 3 * FETCH_SECONDS)
            self.proxy.lie = None
            self.assertEqual(reading.result(PATIENCE_SECONDS), digest)

    def test_a_blob_that_comes_to_the_content_store_is_read_there(self):
        container = self.start()
        self.node.ctr("content", "fetch", "--plain-http", self.image, namespace=PODS)
        self.wait_for(lambda: f"blob {self.layer} is in the content store now" in self.log(),
                      "it is found")
        before = self.proxy.ranges
        self.node.forget_pages(MODEL)
        self.assertEqual(self.read(container), digest)
        self.assertEqual(self.proxy.ranges, before)

    def test_with_registry_and_keyprovider_down_a_restart_is_quick_and_heals(self):
        self.assertEqual(self.read(self.start()), digest)
        time.sleep(STORED_AFTER)
        self.node.stop_daemon("registry")
        self.node.stop_daemon("keyprovider")
        self.node.stop_daemon("snapshotter", signal.SIGKILL)
        for pid in self.node.holder_pids() + self.node.fuse_pids() + self.node.pids_of("kapsule-fetch"):
            os.kill(pid, signal.SIGKILL)
        self.node.start_snapshotter()
        self.assertLess(self.node.start_seconds, 5)
        with self.assertRaises(CriError):
            self.start()
        self.node.start_keyprovider()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:  # what was read before is in the cache
            try:
                self.assertEqual(self.read(self.start()), digest)
                break
            except CriError:
                self.assertLess(time.monotonic(), deadline)
        self.node.start_registry()


if __name__ == "__main__":
    unittest.main()
