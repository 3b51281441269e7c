"""Everything that is read: images, nodes with the real daemons, and the peers beside them.

Each part is made when it is first asked for.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import struct
import time

from harness import peers, system
from harness.sampling import Source
from node import BIN, PROJECT, Node, run

MODEL = "model.gguf"
SHARDS = 8
OPEN_SECONDS = 30


class BenchNode(Node):
    """A node that may use another's registry."""

    def __init__(self, folder, registry=None, settings=""):
        folder.mkdir(parents=True)
        super().__init__(folder, settings=settings)
        self.shares_registry = registry is not None
        self.registry = registry or self.registry

    def start_registry(self):
        if not self.shares_registry:
            super().start_registry()

    def wait_for_files(self, pattern, count=1):
        """Files of the mounted layers, `count` of them, once they are there."""
        deadline = time.monotonic() + OPEN_SECONDS
        while time.monotonic() < deadline:
            found = sorted(self.kapsule_root.glob(f"l/*/fs/{pattern}"))
            if len(found) >= count:
                return found
            time.sleep(0.05)
        raise TimeoutError(f"{pattern} is not mounted after {OPEN_SECONDS} s:\n"
                           f"{self.log('snapshotter')[-2000:]}")

    def blobs(self):
        folder = self.containerd_root / "io.containerd.content.v1.content" / "blobs" / "sha256"
        return [path for path in folder.iterdir() if path.stat().st_size > 1 << 20]

    def source(self, files):
        return Source(files, self.fuse_pids, self.blobs())


def make_shards(folder, count, size, first=0):
    """A safetensors model in `count` files of `size` random bytes each."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Bench"]}))
    for number in range(1, count + 1):
        header = json.dumps({f"w{first + number}": {
            "dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        header += b" " * (-len(header) % 8)
        with open(folder / f"model-{number:05d}-of-{count:05d}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for left in range(size, 0, -(1 << 20)):
                file.write(os.urandom(min(left, 1 << 20)))


class Stand:
    """Use as a context manager; what was made is ended and removed at the end."""

    def __init__(self, folder, mib, tools, cache, log):
        self.folder, self.mib, self.tools, self.cache, self.log = folder, mib, tools, cache, log
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def source(self, name):
        sources = {
            "ext4": lambda: Source([self.plain]),
            "tmpfs": lambda: Source([self.plain_in_memory]),
            "kapsule-disk": lambda: self.pulled(self.disk_node, "model-64k"),
            "kapsule-disk-16k": lambda: self.pulled(self.disk_node, "model-16k"),
            "kapsule-disk-shards": lambda: self.pulled(self.disk_node, "shards"),
            "kapsule-memory": lambda: self.pulled(self.memory_node, "model-64k"),
            "kapsule-memory-shards": lambda: self.pulled(self.memory_node, "shards"),
            "kapsule-loop": lambda: self.pulled(self.loop_node, "model-64k"),
            "copy-only": lambda: self.copy_only.source,
            "gocryptfs": lambda: self.gocryptfs.source,
            "passthrough_ll": lambda: self.passthrough_ll.source,
        }
        return sources[name]()

    # The model

    @functools.cached_property
    def model(self):
        self.log(f"  a model of {self.mib} MiB")
        path = self.folder / MODEL
        run(PROJECT / "scripts" / "make-tiny-gguf", path)
        with open(path, "ab") as file:
            for _ in range(self.mib):
                file.write(os.urandom(1 << 20))
        return path

    @functools.cached_property
    def plain(self):
        """The same bytes, read by nothing but the measurement."""
        path = self.folder / "plain"
        shutil.copyfile(self.model, path)
        system.sync(self.folder)
        return path

    @functools.cached_property
    def plain_in_memory(self):
        (self.memory / "plain").mkdir()
        return pathlib.Path(shutil.copyfile(self.model, self.memory / "plain" / "model"))

    @functools.cached_property
    def memory(self):
        """A tmpfs."""
        path = self.folder / "memory"
        path.mkdir()
        system.mount("bench", path, "tmpfs", data=f"size={self.mib * 10 + 512}m,mode=755")
        self._stack.callback(system.unmount, path)
        return path

    @functools.cached_property
    def keys(self):
        run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-4096", "-o", self.folder / "keys")
        return self.folder / "keys"

    def build(self, name, modelfile, *arguments):
        """Pushes an encrypted image; returns its name."""
        image = f"{self.disk_node.registry}/bench/{name}:enc"
        path = self.folder / f"Modelfile-{name}"
        path.write_text(modelfile)
        run(BIN / "kapsule-ctl", "build", "-f", path, "-t", image, "--insecure", "--progress", "none",
            "--encryption-key", self.keys / "public.pem", *arguments, self.folder)
        return image

    @functools.lru_cache(maxsize=None)
    def image(self, name):
        """The image of that name, and its files."""
        self.log(f"  image {name}")
        if name == "shards":
            folder = self.folder / "shards"
            make_shards(folder, SHARDS, self.mib // SHARDS << 20)
            image = self.build(name, f"FROM {folder}\n")
            shutil.rmtree(folder)
            return image, f"models/{name}/*.safetensors", SHARDS
        chunks = {"model-64k": "64KiB", "model-16k": "16KiB"}[name]
        return self.build(name, f"FROM {self.model}\n", "--chunk-size", chunks), \
            f"models/{name}/{MODEL}", 1

    @functools.lru_cache(maxsize=None)
    def pulled(self, node, name):
        """The files of image `name` on a node."""
        image, pattern, count = self.image(name)
        node.pull(image)
        source = node.source(node.wait_for_files(pattern, count))
        system.sync(self.folder)
        return source

    # Who serves it

    def node(self, folder, **options):
        node = self._stack.enter_context(BenchNode(folder, **options))
        node.install_key(self.keys / "private.pem")
        return node

    def other_node(self, folder, **options):
        """One that pulls from the registry of the node on the disk."""
        return self.node(folder, registry=self.disk_node.registry, **options)

    @functools.cached_property
    def disk_node(self):
        self.log("  a node on the disk")
        return self.node(self.folder / "node")

    @functools.cached_property
    def memory_node(self):
        self.log("  a node in memory")
        return self.other_node(self.memory / "node")

    @functools.cached_property
    def loop_node(self):
        self.log("  a node in memory that mounts through loop devices")
        return self.other_node(self.memory / "loop", settings='view_mount = "loop"\n')

    @functools.cached_property
    def copy_only(self):
        self.pulled(self.memory_node, "model-64k")
        views = (self.memory_node.kapsule_root / "views").iterdir()
        view = max(views, key=lambda path: path.stat().st_size)
        return self.peer(peers.CopyOnly, self.tools / "copy_server", view, MODEL)

    @functools.cached_property
    def gocryptfs(self):
        return self.peer(peers.Gocryptfs, self.model)

    @functools.cached_property
    def passthrough_ll(self):
        return self.peer(peers.PassthroughLl, self.cache, self.plain_in_memory)

    def peer(self, kind, *arguments):
        self.log(f"  {kind.__name__}")
        peer = kind(self.memory / kind.__name__.lower(), *arguments)
        self._stack.callback(peer.close)
        return peer
