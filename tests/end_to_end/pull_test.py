"""kapsule-ctl pull: into containerd 1.6 without fetching the model, and into a folder.

Needs root and the programs of build/bin (KAPSULE_BIN names another folder).
"""

import contextlib
import hashlib
import http.client
import http.server
import json
import pathlib
import shutil
import tempfile
import threading
import unittest

from node import BIN, PROJECT, Node, make_base_image, run, sha256_of, unique_name
from repository import MANIFEST, Repository

MARKER = "kapsule-marker-83ce21d0-0123456789abcdef0123456789abcdef01234567"  # 64 bytes
MODEL = "/models/tiny/model.gguf"
MODEL_LAYERS = 3  # skeleton, weights, small files
LABEL = "containerd.io/snapshot/kapsule.layer"
INDEX = "application/vnd.oci.image.index.v1+json"
NETWORK, NOT_FOUND, FAILURE, USAGE = 6, 4, 1, 2


def setUpModule():
    global work, node, digest, base, repository
    work = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-pull-"))
    unittest.addModuleCleanup(shutil.rmtree, work)
    model = work / "tiny.gguf"
    run(PROJECT / "scripts" / "make-tiny-gguf", model, "--marker", MARKER, "--pad-mib", 8)
    digest = sha256_of(model)
    (work / "Modelfile").write_text(f"FROM {model}\n")
    run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-2048", "-o", work / "keys")
    base = make_base_image(work / "base", BIN / "probe")
    node = Node()
    repository = Repository(node.registry, "acme/tiny")
    try:
        node.start_all()
        node.install_key(work / "keys" / "private.pem")
    except BaseException:
        node.stop()
        raise


def tearDownModule():
    node.stop()


class Front(http.server.ThreadingHTTPServer):
    """In front of a registry: notes which blobs are asked for, and has no answer for `broken`."""

    def __init__(self):
        self.blobs, self.broken = [], set()
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()

    def close(self):
        self.shutdown()
        self.thread.join()
        self.server_close()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            blob = self.path.rpartition("/")[2] if "/blobs/" in self.path else None
            if blob:
                self.server.blobs.append(blob)
            if blob in self.server.broken:
                self.send_error(503)
                return
            with contextlib.closing(http.client.HTTPConnection(node.registry)) as registry:
                registry.putrequest("GET", self.path, skip_host=True)
                for key, value in self.headers.items():
                    registry.putheader(key, value)
                registry.endheaders()
                answer = registry.getresponse()
                self.send_response(answer.status)
                for key in ("Content-Type", "Content-Length", "Content-Range",
                            "Docker-Content-Digest"):
                    if answer.getheader(key):
                        self.send_header(key, answer.getheader(key))
                self.end_headers()
                shutil.copyfileobj(answer, self.wfile)


def build(tag, *options):
    """A fresh image: every encrypted build has layers of its own."""
    name = repository.name(tag)
    run(BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "-t", name, "--insecure",
        "--base", base, "--encryption-key", work / "keys" / "public.pem", *options, work)
    return name


def push_index(name, arm64, amd64):
    """Has `name` name an index of these manifests."""
    entries = [{"mediaType": MANIFEST, "size": len(document),
                "digest": f"sha256:{hashlib.sha256(document).hexdigest()}",
                "platform": {"os": "linux", "architecture": architecture}}
               for architecture, document in (("arm64", arm64), ("amd64", amd64))]
    repository.put_manifest(tag_of(name), {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})


def tag_of(name):
    return name.rpartition(":")[2]


def manifest_of(name):
    return repository.manifest(tag_of(name))


def layers_of(name):
    return [layer["digest"] for layer in manifest_of(name)["layers"]]


def pull(name, *options, check=True, containerd=None, snapshotter="kapsule"):
    return run(BIN / "kapsule-ctl", "pull", f"--containerd={containerd or node.socket}",
               "--snapshotter", snapshotter, "--insecure", "--progress", "none", *options, name,
               check=check)


def pull_json(name, **options):
    return json.loads(pull(name, "--json", **options).stdout)


def states(pulled):
    return [layer["state"] for layer in pulled["layers"]]


def listed(namespace="default"):
    """All that containerd knows in a namespace, but for how long it knows it."""
    content = node.ctr("content", "list", namespace=namespace).stdout.splitlines()[1:]
    return {"images": node.ctr("images", "list", namespace=namespace).stdout,
            "snapshots": node.ctr("snapshots", "--snapshotter", "kapsule", "list",
                                  namespace=namespace).stdout,
            "content": {line.split()[0]: sorted(line.split()[-1].split(",")) for line in content},
            "leases": node.ctr("leases", "list", "-q", namespace=namespace).stdout}


def collect_garbage(namespace="default"):
    """And waits for it."""
    lease = unique_name()
    node.ctr("leases", "create", "--id", lease, namespace=namespace)
    node.ctr("leases", "delete", "--sync", lease, namespace=namespace)


def remove(name, namespace="default"):
    node.ctr("images", "remove", "--sync", name, namespace=namespace)


class PullTest(unittest.TestCase):
    def assert_is_empty(self, namespace="default"):
        left = listed(namespace)
        self.assertEqual(left["content"], {})
        self.assertEqual(left["leases"], "")
        for what in ("images", "snapshots"):
            self.assertEqual(len(left[what].splitlines()), 1, left[what])

    def tearDown(self):
        for name in node.ctr("images", "list", "-q").stdout.split():
            remove(name)
        for lease in node.ctr("leases", "list", "-q").stdout.split():
            node.ctr("leases", "delete", lease)
        collect_garbage()
        self.assert_is_empty()

    def assert_runs(self, name, **options):
        out = node.run_container(name, "/bin/sha256sum", MODEL, **options).stdout
        self.assertEqual(out.split()[0], digest)

    def front(self):
        front = Front()
        self.addCleanup(front.close)
        return front

    def test_runs_at_once_and_fetches_nothing_of_the_model(self):
        name = build("lazy")
        pulled = pull_json(name)
        self.assertEqual(states(pulled), ["registered"] * MODEL_LAYERS + ["unpacked"])
        self.assertTrue(pulled["changed"])
        layers = layers_of(name)
        self.assert_runs(name)
        self.assertEqual(set(layers) & set(listed()["content"]), {layers[MODEL_LAYERS]})
        self.assertEqual(node.files_with(MARKER), [])

    def test_pulling_again_changes_nothing(self):
        name = build("again")
        pull(name)
        before = listed()
        self.assertEqual(before["leases"], "")
        again = pull_json(name)
        self.assertEqual(states(again), ["present"] * (MODEL_LAYERS + 1))
        self.assertFalse(again["changed"])
        self.assertEqual(listed(), before)

    def test_garbage_collection_keeps_it_and_removal_removes_all(self):
        name = build("kept")
        pull(name)
        before = listed()
        collect_garbage()
        self.assertEqual(listed(), before)
        self.assert_runs(name)
        remove(name)
        self.assert_is_empty()

    def test_blobs_have_the_labels_that_containerd_gives_them(self):
        name = build("labels")
        push_index(name, repository.raw_manifest(tag_of(build("arm"))),
                   repository.raw_manifest(tag_of(name)))
        pull(name)
        node.pull(name, namespace="theirs")
        try:
            ours, theirs = listed(), listed("theirs")
            for blob, labels in ours["content"].items():
                self.assertEqual(labels, theirs["content"][blob], blob)
            self.assertEqual(len(ours["content"]), 4)  # index, manifest, config, base
            ours, theirs = (found["images"].splitlines()[1].split()[:3] for found in (ours, theirs))
            self.assertEqual(ours, theirs)
            self.assert_runs(name)
        finally:
            remove(name, namespace="theirs")

    def test_a_tag_that_has_moved_is_followed(self):
        name = build("moved")
        pull(name)
        build("moved", "--name", "other")
        self.assertTrue(pull_json(name)["changed"])
        out = node.run_container(name, "/bin/sha256sum", MODEL.replace("tiny", "other")).stdout
        self.assertEqual(out.split()[0], digest)
        self.assertEqual(len(listed()["images"].splitlines()), 2)

    def test_another_blob_for_a_chain_that_is_here_is_refused(self):
        name, other = build("here"), build("there")
        pull(name)
        before = listed()
        forged = manifest_of(name)
        diff_id = json.loads(forged["layers"][1]["annotations"][LABEL])["diffID"]
        forged["layers"][1] = manifest_of(other)["layers"][1]
        annotations = forged["layers"][1]["annotations"]
        annotations[LABEL] = json.dumps({**json.loads(annotations[LABEL]), "diffID": diff_id})
        repository.put_manifest(tag_of(other), forged)
        refused = pull(other, check=False)
        self.assertEqual(refused.returncode, FAILURE, refused.stderr)
        self.assertIn("remove the other image first", refused.stderr)
        self.assertEqual(listed(), before)

    def test_plain_models_and_ordinary_images_are_pulled_too(self):
        model = work / "plain" / "tiny.gguf"
        model.parent.mkdir()
        run(PROJECT / "scripts" / "make-tiny-gguf", model, "--pad-mib", 8)
        (work / "plain" / "Modelfile").write_text(f"FROM {model}\n")
        name = f"{node.registry}/acme/tiny:plain"
        run(BIN / "kapsule-ctl", "build", "-t", name, "--insecure", "--base", base, model.parent)
        self.assertEqual(states(pull_json(name)), ["registered"] * MODEL_LAYERS + ["unpacked"])
        out = node.run_container(name, "/bin/sha256sum", MODEL).stdout
        self.assertEqual(out.split()[0], sha256_of(model))
        remove(name)
        ordinary = f"{node.registry}/library/ordinary:1"
        run("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", base,
            f"docker://{ordinary}")
        self.assertEqual(states(pull_json(ordinary)), ["unpacked"])
        self.assertEqual(node.run_container(ordinary, "/bin/ls", "/bin/probe").stdout,
                         "/bin/probe\n")

    def test_a_pull_that_was_cut_off_is_gone_on_with(self):
        front = self.front()
        built = build("cut")
        name = built.replace(node.registry, f"127.0.0.1:{front.server_port}")
        front.broken = {layers_of(built)[MODEL_LAYERS]}
        cut = pull(name, check=False)
        self.assertEqual(cut.returncode, NETWORK, cut.stderr)
        self.assertEqual(len(listed()["leases"].split()), 1)
        collect_garbage()
        left = listed()
        self.assertEqual(len(left["content"]), 2)  # manifest and config
        self.assertEqual(len(left["images"].splitlines()), 1, left["images"])
        front.broken = set()
        self.assertTrue(pull_json(name)["changed"])
        self.assertEqual(listed()["leases"], "")
        self.assert_runs(name)

    def test_what_cannot_be_pulled_leaves_nothing(self):
        name = build("bad")
        for code, text, options in (
                (FAILURE, "does not know Kapsule layers", {"snapshotter": "overlayfs"}),
                (FAILURE, "proxy_plugins", {"snapshotter": "none"}),
                (NOT_FOUND, "is containerd running", {"containerd": "/none.sock"}),
                (USAGE, "not the path of a socket", {"containerd": "none.sock"})):
            failed = pull(name, check=False, **options)
            self.assertEqual(failed.returncode, code, failed.stderr)
            self.assertIn(text, failed.stdout + failed.stderr)
        self.assertEqual(pull(f"{node.registry}/acme/tiny:none", check=False).returncode, NOT_FOUND)
        for image in node.ctr("images", "list", "-q").stdout.split():
            remove(image)  # its snapshots could not be made
        collect_garbage()
        self.assert_is_empty()

    def test_into_a_folder_and_finished_blobs_are_not_fetched_again(self):
        front = self.front()
        built = build("folder")
        name = built.replace(node.registry, f"127.0.0.1:{front.server_port}")
        layout = work / "layout"

        def fetched():
            front.blobs.clear()
            run(BIN / "kapsule-ctl", "pull", "-o", layout, "--insecure", "--progress", "none", name)
            return front.blobs

        self.assertEqual(len(fetched()), MODEL_LAYERS + 2)
        manifest = run("skopeo", "inspect", "--raw", f"oci:{layout}:folder").stdout
        self.assertEqual(manifest, repository.raw_manifest(tag_of(built)).decode())
        self.assertEqual(fetched(), [])
        layer = layers_of(built)[1]
        (layout / "blobs" / layer.replace(":", "/")).unlink()
        self.assertEqual(fetched(), [layer])
        self.assertEqual(f"sha256:{sha256_of(layout / 'blobs' / layer.replace(':', '/'))}", layer)


if __name__ == "__main__":
    unittest.main()
