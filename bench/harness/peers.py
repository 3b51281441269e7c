"""What Kapsule is measured against: other servers of the same bytes in memory."""

import pathlib
import shutil
import subprocess
import time

from harness import system
from harness.sampling import Source
from node import CommandFailed, run

START_SECONDS = 10
EXAMPLES = pathlib.Path("/usr/share/doc/libfuse3-dev/examples")


def _start(command, ready, log):
    """A server in the foreground, once `ready` says that it serves."""
    with open(log, "ab") as output:
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL,
                                   stdout=output, stderr=output)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return process
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise CommandFailed(f"{command[0]} does not serve: {log.read_text(errors='replace')}")


class Peer:
    """One server with its folder; close() ends it."""

    def __init__(self, folder):
        self.folder = folder
        self.process = None
        self.mounts = []
        folder.mkdir()

    def start(self, command, ready):
        self.process = _start(command, ready, self.folder / "log")

    def pids(self):
        return [self.process.pid]

    def close(self):
        for target in reversed(self.mounts):
            system.unmount(target)
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder)


class CopyOnly(Peer):
    """tools/copy_server.cc with the bytes of a view of Kapsule, and EROFS on it."""

    def __init__(self, folder, server, view, name):
        super().__init__(folder)
        flat, fuse, tree = folder / "flat", folder / "fuse", folder / "tree"
        fuse.mkdir()
        tree.mkdir()
        shutil.copyfile(view, flat)
        self.start([server, flat, fuse], (fuse / "view").exists)
        self.mounts.append(fuse)
        system.mount_erofs(fuse / "view", tree)
        self.mounts.append(tree)
        self.source = Source([next(tree.glob(f"**/{name}"))], self.pids)


class Gocryptfs(Peer):
    """With its own settings: AES-256-GCM, 4 KiB blocks."""

    def __init__(self, folder, model):
        super().__init__(folder)
        cipher, tree, password = folder / "cipher", folder / "tree", folder / "password"
        cipher.mkdir()
        tree.mkdir()
        password.write_text("bench\n")
        run("gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", password, cipher)
        self.start(["gocryptfs", "-q", "-fg", "-passfile", password, cipher, tree], tree.is_mount)
        self.mounts.append(tree)
        shutil.copyfile(model, tree / "model")
        self.source = Source([tree / "model"], self.pids)


class PassthroughLl(Peer):
    """libfuse's example as Debian ships it: no encryption at all."""

    def __init__(self, folder, cache, plain):
        super().__init__(folder)
        program, tree = cache / "passthrough_ll", folder / "tree"
        tree.mkdir()
        if not program.exists():
            self.compile(program)
        self.start([program, "-f", "-o", f"source={plain.parent},cache=always", tree], tree.is_mount)
        self.mounts.append(tree)
        self.source = Source([tree / plain.name], self.pids)

    @staticmethod
    def compile(program):
        code = EXAMPLES / "passthrough_ll.c"
        if not code.exists():
            raise CommandFailed(f"{code} is missing: run bench/install-packages; where dpkg leaves "
                                "documentation out (path-exclude), reinstall libfuse3-dev without")
        program.parent.mkdir(parents=True, exist_ok=True)
        flags = run("pkg-config", "--cflags", "--libs", "fuse3").stdout.split()
        run("cc", "-O2", code, *flags, "-o", program)
