"""A private node in one folder: registry, keyprovider, snapshotter, containerd.

Used by scripts/demo and the end-to-end tests. Everything listens on loopback or
on unix sockets below the folder; the host's containerd is not touched. Needs
root and the programs of build/bin.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time

PROJECT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("KAPSULE_BIN", PROJECT / "build" / "bin"))
FUSE_UID = 61001
FETCH_UID = 61003
KEYS_UID = 61002
DAEMON_SECONDS = 120  # that one may need to start or to end on a machine under load
# The look-up of an image, too, takes longer there than it may by default.
PATIENT = "lookup_timeout_ms = 20000\n"
PULLS = 5
PORTS = iter(random.sample(range(20000, 32000), 1000))  # each is given once


class CommandFailed(Exception):
    """A command that had to succeed did not."""


def run(*command, check=True, **options):
    """Runs a command; returns it with text output. Raises CommandFailed."""
    options.setdefault("timeout", 300)
    options.setdefault("errors", "replace")
    done = subprocess.run([str(part) for part in command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **options)
    if check and done.returncode != 0:
        raise CommandFailed(f"{' '.join(map(str, command))}\nexit {done.returncode}\n"
                            f"{done.stdout}{done.stderr}")
    return done


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def unique_name():
    """For a container: runc knows those of every containerd of the machine."""
    return f"c{os.getpid()}-{time.monotonic_ns()}"


def free_port():
    """None of those that the kernel gives to clients: it stays free while its daemon is away."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise CommandFailed("no port is free")


def mounts_below(folder):
    """Mount points below `folder`, deepest first."""
    points = []
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point.startswith(f"{folder}/"):
            points.append(point)
    return sorted(points, key=len, reverse=True)


class Node:
    """The daemons of one node. Use as a context manager; stop() leaves nothing."""

    def __init__(self, folder=None, view_mount="auto", settings=""):
        self.folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="kapsule-node-"))
        self.folder.chmod(0o711)
        self.registry = f"127.0.0.1:{free_port()}"
        self.daemons = {}
        self.fuse_program = BIN / "kapsule-fuse"
        self.view_mount = view_mount
        self.keys = self.folder / "node-keys"
        self.socket = self.folder / "containerd.sock"
        self.containerd_root = self.folder / "containerd"
        self.kapsule_root = self.folder / "kapsule"
        self.keys_folder = self.folder / "run"
        for made in (self.keys, self.folder / "logs", self.keys_folder, self.kapsule_root):
            made.mkdir(exist_ok=True)
        self.settings = self.folder / "snapshotter.toml"
        self.settings.write_text(PATIENT + settings)
        self.keys.chmod(0o700)
        os.chown(self.keys, KEYS_UID, KEYS_UID)
        os.chown(self.keys_folder, KEYS_UID, KEYS_UID)
        self.keys_folder.chmod(0o755)

    def __enter__(self):
        try:
            self.start_all()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    # Daemons

    def start_all(self):
        self.start_registry()
        self.start_keyprovider()
        self.start_snapshotter()
        self.start_containerd()

    def start_registry(self):
        storage = self.folder / "registry"
        config = self.folder / "registry.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {storage}}},"
            f" delete: {{enabled: true}}}}\nhttp: {{addr: {self.registry}}}\n")
        self.start("registry", "docker-registry", "serve", config)
        host, port = self.registry.split(":")
        self.wait_for("registry", lambda: socket.create_connection((host, int(port)), 1).close() or True)

    def start_keyprovider(self):
        self.start("keyprovider", BIN / "kapsule-keyprovider", "--keys", self.keys,
                   "--address", self.keys_folder / "keys.sock", "--allow-uid", FUSE_UID,
                   user=KEYS_UID, group=KEYS_UID, extra_groups=[])
        self.wait_for("keyprovider", lambda: (self.keys_folder / "keys.sock").exists())

    def start_snapshotter(self):
        address = self.folder / "snapshotter.sock"
        begun = time.monotonic()
        # With the soft limit that daemons get from systemd.
        self.start("snapshotter", "prlimit", "--nofile=1024:", BIN / "kapsule-snapshotter",
                   "--config", self.settings, "--root", self.kapsule_root, "--address", address, "--containerd-address", self.socket,
                   "--content-root", self.containerd_root / "io.containerd.content.v1.content",
                   "--keyprovider", self.keys_folder / "keys.sock",
                   "--fuse-program", self.fuse_program, "--fuse-user", FUSE_UID,
                   "--fetch-user", FETCH_UID, "--fetch-cache", self.folder / "fetched",
                   "--view-mount", self.view_mount)

        def listens():
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(address))
            return True

        self.wait_for("snapshotter", listens)
        self.start_seconds = time.monotonic() - begun  # that itself needed, the last time
        if "containerd" in self.daemons:  # which dials again after a back-off of up to 3 s
            self.wait_for("snapshotter", lambda: self.ctr(
                "snapshots", "--snapshotter", "kapsule", "list", check=False).returncode == 0)

    def start_containerd(self):
        config = self.folder / "containerd.toml"
        config.write_text(f"""version = 2
root = "{self.containerd_root}"
state = "{self.folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{self.socket}"
[proxy_plugins.kapsule]
  type = "snapshot"
  address = "{self.folder}/snapshotter.sock"
""")
        self.start("containerd", "containerd", "--config", config)
        self.wait_for("containerd", lambda: self.ctr("version", check=False).returncode == 0)

    def start(self, name, *command, **options):
        log = open(self.folder / "logs" / f"{name}.log", "ab")
        with log:
            self.daemons[name] = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, **options)

    def wait_for(self, name, ready):
        deadline = time.monotonic() + DAEMON_SECONDS
        while time.monotonic() < deadline:
            if self.daemons[name].poll() is not None:
                break
            try:
                if ready():
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise CommandFailed(f"{name} did not start:\n{self.log(name)}")

    def log(self, name):
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop_daemon(self, name, signal_number=signal.SIGTERM):
        """Ends one daemon; returns its exit status."""
        process = self.daemons.pop(name)
        if process.poll() is None:
            process.send_signal(signal_number)
        try:
            return process.wait(DAEMON_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise CommandFailed(f"{name} did not end within {DAEMON_SECONDS} s:\n{self.log(name)}")

    def stop(self):
        """Ends every daemon and removes the folder; raises where something is left."""
        problems = []
        if "containerd" in self.daemons:
            self.remove_containers()
        for name in ("containerd", "snapshotter", "keyprovider", "registry"):
            if name in self.daemons:
                try:
                    # At SIGTERM the snapshotter would leave its data plane for the next one.
                    status = self.stop_daemon(name, signal.SIGINT if name == "snapshotter"
                                              else signal.SIGTERM)
                    if name.startswith(("snapshotter", "keyprovider")) and status != 0:
                        problems.append(f"{name} ended with {status}:\n{self.log(name)[-2000:]}")
                except CommandFailed as error:
                    problems.append(str(error))
        self.wait_for_shims()
        problems += [f"still mounted: {point}" for point in mounts_below(self.kapsule_root)]
        problems += [f"still running: {line}" for line in self.processes()]
        problems += [f"still running: kapsule-holder {pid}" for pid in self.holder_pids()]
        problems += [line for line in self.log("snapshotter").splitlines()
                     if "forbidden system call" in line]
        # Before any unmount, which would wait for what nobody answers.
        for pid in self.holder_pids() + self.pids_of("kapsule-fuse") + self.pids_of("kapsule-fetch"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for point in mounts_below(self.folder):
            subprocess.run(["umount", "-l", point], check=False)
        shutil.rmtree(self.folder)
        if problems:
            raise CommandFailed("\n".join(problems))

    def wait_for_shims(self):
        """Those of containerd end a little later than the tasks that they were for."""
        deadline = time.monotonic() + 20
        while any("containerd-shim" in line for line in self.processes()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)

    def processes(self):
        """Command lines of processes that name this node's folder."""
        found = []
        for proc in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                line = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.folder) in line and int(proc.name) != os.getpid():
                found.append(f"{proc.name} {line}")
        return found

    def fuse_pids(self):
        """Processes of this node's data plane."""
        return self.pids_of("kapsule-fuse")

    def pids_of(self, program):
        """Processes of this node that run a program."""
        found = []
        for pid in (int(line.split()[0]) for line in self.processes()):
            with contextlib.suppress(OSError):  # it may have ended
                if pathlib.Path(f"/proc/{pid}/comm").read_text() == f"{program}\n":
                    found.append(pid)
        return found

    def holder_pids(self):
        """Processes of kapsule-holder that listen on this node's socket."""
        inodes = {f"socket:[{line.split()[6]}]"
                  for line in pathlib.Path("/proc/net/unix").read_text().splitlines()
                  if line.endswith(f" {self.kapsule_root}/holder.sock")}
        found = []
        for comm in pathlib.Path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):
                if comm.read_text() == "kapsule-holder\n" and any(
                        os.readlink(fd) in inodes for fd in (comm.parent / "fd").iterdir()):
                    found.append(int(comm.parent.name))
        return found

    def forget_pages(self, path):
        """Drops a model file (as a container names it) from the page cache of every layer."""
        for file in self.kapsule_root.glob(f"l/*/fs{path}"):
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    # Clients

    def ctr(self, *arguments, namespace="default", check=True, **options):
        return run("ctr", "--address", self.socket, "--namespace", namespace, *arguments,
                   check=check, **options)

    def pull(self, image, check=True, namespace="default"):
        """Pulls, and again where the snapshotter asks for that: on a machine under load the
        look-up of the image can miss its deadline."""
        pull = ("images", "pull", "--plain-http", "--snapshotter", "kapsule", image)
        for _ in range(PULLS):
            done = self.ctr(*pull, check=False, namespace=namespace)
            if "pull again" not in done.stderr:
                break
        if check and done.returncode != 0:
            raise CommandFailed(f"pull {image}: {done.stderr}")
        return done

    def run_container(self, image, *command, name=None, check=True, namespace="default"):
        # Under load, ctr loses all output of a short container about once in 200 times.
        for _ in range(3):
            done = self.ctr("run", "--rm", "--snapshotter", "kapsule", image, name or unique_name(),
                            *command, check=check, namespace=namespace)
            if name or done.returncode != 0 or done.stdout or done.stderr:
                break
        return done

    def remove_containers(self):
        for namespace in self.ctr("namespaces", "list", "-q", check=False).stdout.split():
            for task in self.ctr("tasks", "list", "-q", namespace=namespace, check=False).stdout.split():
                self.ctr("tasks", "kill", "-s", "KILL", task, namespace=namespace, check=False)
                self.ctr("tasks", "delete", "-f", task, namespace=namespace, check=False)
            for name in self.ctr("containers", "list", "-q", namespace=namespace,
                                 check=False).stdout.split():
                self.ctr("containers", "delete", name, namespace=namespace, check=False)

    def install_key(self, private_pem, name="node.pem"):
        """Gives the node a private key. The keyprovider reads it at its next start or SIGHUP."""
        target = self.keys / name
        shutil.copyfile(private_pem, target)
        os.chown(target, KEYS_UID, KEYS_UID)
        target.chmod(0o600)
        if "keyprovider" in self.daemons:
            read = f" from {name}\n"
            times = self.log("keyprovider").count(read)
            self.daemons["keyprovider"].send_signal(signal.SIGHUP)
            self.wait_for("keyprovider", lambda: self.log("keyprovider").count(read) > times)

    def files_with(self, marker):
        """Regular files below the node's folder, mounts left out, that hold `marker`."""
        found = run("find", self.folder, "-xdev", "-type", "f", "-exec", "grep", "-lF", marker,
                    "{}", "+", check=False)
        return found.stdout.splitlines()


def make_base_image(folder, probe=None):
    """Writes an OCI layout `folder`, tag "base", with busybox (and a probe program) as one gzip
    layer, as runtime images have it. Returns the name that kapsule-ctl --base takes."""
    folder = pathlib.Path(folder)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        root = pathlib.Path(work) / "root"
        (root / "bin").mkdir(parents=True)
        (root / "tmp").mkdir(mode=0o777)
        shutil.copy("/bin/busybox", root / "bin" / "busybox")
        for applet in ("sh", "cat", "ls", "sha256sum", "dd", "stat", "sleep", "id", "find", "cmp"):
            (root / "bin" / applet).symlink_to("busybox")
        if probe:
            shutil.copy(probe, root / "bin" / "probe")
        tar = pathlib.Path(work) / "layer.tar"
        with tarfile.open(tar, "w") as archive:
            archive.add(root, ".")
        diff_id = sha256_of(tar)
        run("gzip", "-n", tar)
        layer = pathlib.Path(work) / "layer.tar.gz"
        layer_digest, layer_size = sha256_of(layer), layer.stat().st_size
        shutil.copy(layer, blobs / layer_digest)

    def add(document):
        text = json.dumps(document).encode()
        digest = hashlib.sha256(text).hexdigest()
        (blobs / digest).write_bytes(text)
        return {"digest": f"sha256:{digest}", "size": len(text)}

    config = add({"architecture": "amd64", "os": "linux",
                  "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
                  "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}})
    manifest = add({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": f"sha256:{layer_digest}", "size": layer_size}]})
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps({
        "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", **manifest,
            "annotations": {"org.opencontainers.image.ref.name": "base"}}]}))
    return f"oci:{folder}:base"
