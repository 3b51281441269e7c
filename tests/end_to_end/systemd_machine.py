"""A machine in namespaces: Debian's systemd as the first process of its own process tree, on this
host's programs and a disk, network, cgroups and devices of its own.

Needs root. Nothing of the host changes; stop() says so, or raises.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

from cri_node import CriNode, make_pause_image
from node import BIN, PROJECT, CommandFailed, Node, mounts_below, run, unique_name

BOOT = pathlib.Path(__file__).with_name("systemd_boot")
CGROUPS = pathlib.Path("/sys/fs/cgroup")
PROGRAMS = ("snapshotter", "fuse", "fetch", "holder", "keyprovider", "ctl")
REGISTRY = "127.0.0.1:5000"
PAUSE = f"{REGISTRY}/pause:1"
# What would change the host's kernel, or waits for devices.
MASKED = ("getty.target", "systemd-binfmt.service", "systemd-logind.service",
          "systemd-random-seed.service", "systemd-sysctl.service", "sys-kernel-debug.mount",
          "sys-kernel-tracing.mount")
BOOT_SECONDS = 120
NAMESPACES = ("--pid", "--mount", "--cgroup", "--ipc", "--uts", "--net")
PR_SET_PDEATHSIG = 1


class Machine:
    """Its disk outlives power_off(). Use as a context manager."""

    shared = {}  # folders of the host, by where the machine has them, read-only

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-machine-"))
        self.cgroup = unique_name()
        self.process = None
        self.pid = None
        self.make_disk()

    def __enter__(self):
        try:
            self.boot()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    # The disk

    def make_disk(self):
        self.disk = self.folder / "root"
        for name in ("root", "usr", "work"):
            (self.folder / name).mkdir()
        for name in ("dev", "home", "mnt", "opt", "proc", "root", "run", "sys", "tmp", "usr",
                     "var/cache", "var/lib", "var/log/journal", "var/tmp"):
            (self.disk / name).mkdir(parents=True)
        for place in self.shared:
            self.path(place).mkdir(parents=True)
        for name in ("bin", "lib", "lib32", "lib64", "sbin"):
            (self.disk / name).symlink_to(f"usr/{name}")
        (self.disk / "var/run").symlink_to("/run")
        shutil.copytree("/etc", self.disk / "etc", symlinks=True)
        shutil.rmtree(self.disk / "etc/systemd/system")
        self.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
        self.write("/etc/hostname", "machine\n")
        for unit in MASKED:
            self.link(f"/etc/systemd/system/{unit}", "/dev/null")
        self.write("/etc/docker/registry/config.yml", f"""version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: /var/lib/docker-registry}}, delete: {{enabled: true}}}}
http: {{addr: {REGISTRY}}}
""")
        self.make_folder("/var/lib/docker-registry", "docker-registry")
        self.enable("docker-registry")
        self.enable("containerd")
        self.write("/etc/cni/net.d/pods.conflist", json.dumps({
            "cniVersion": "0.4.0", "name": "pods", "plugins": [{
                "type": "ptp", "ipMasq": False,
                "ipam": {"type": "host-local", "subnet": "10.93.0.0/24"}}]}))

    def path(self, path):
        """Where a file of the machine is for this process; of /usr and what is mounted, only
        while the machine runs."""
        base = self.disk if self.pid is None else pathlib.Path(f"/proc/{self.pid}/root")
        return base / str(path).lstrip("/")

    def write(self, path, data, mode=0o644):
        """Replaces a file, as package managers do."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.new")
        new.write_bytes(data if isinstance(data, bytes) else data.encode())
        new.chmod(mode)
        new.replace(target)

    def link(self, path, to):
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(to)

    def make_folder(self, path, owner):
        self.path(path).mkdir(parents=True)
        shutil.chown(self.path(path), owner, owner)

    def enable(self, service):
        self.link(f"/etc/systemd/system/multi-user.target.wants/{service}.service",
                  f"/lib/systemd/system/{service}.service")

    # Power

    def boot(self):
        groups = [path / self.cgroup for path in self.hierarchies()]
        for group in groups:
            group.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (group / name).exists():
                    (group / name).write_text((group.parent / name).read_text())

        def enter():
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            for group in groups:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        shared = [word for place, folder in self.shared.items() for word in (folder, place)]
        with open(self.folder / "console", "ab") as console:
            self.process = subprocess.Popen(
                ["unshare", *NAMESPACES, "--fork", "--kill-child", BOOT, self.folder, *shared],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                preexec_fn=enter)
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.wait_for("boots", lambda: children.read_text().strip())
        self.pid = int(children.read_text())
        # Until it has its own root directory it has the host's, where a systemd may run, too.
        self.wait_for("boots", lambda: self.path("/run/systemd/private").exists() and
                      self.path("/").samefile(self.disk))
        self.run("systemctl", "is-system-running", "--wait", check=False)

    def hierarchies(self):
        """Of cgroups: one, or one for each controller."""
        if (CGROUPS / "cgroup.procs").exists():
            return [CGROUPS]
        return [path.parent for path in CGROUPS.glob("*/cgroup.procs")]

    def power_off(self):
        """As `systemctl poweroff` does; the disk stays as it is."""
        self.run("systemctl", "poweroff", check=False)
        self.process.wait(BOOT_SECONDS)
        self.process = self.pid = None

    def stop(self):
        """Ends the machine, and removes it and its disk. Raises where something is left."""
        problems = []
        if self.process is not None:
            self.process.kill()  # and with it the machine's first process, and so all of them
            self.process.wait()
        self.pid = None
        problems += [f"left running: {line}" for line in self.wait_for_the_end()]
        problems += [f"left mounted: {point}" for point in mounts_below(self.folder)]
        shutil.rmtree(self.folder)
        if problems:
            raise CommandFailed("\n".join(problems))

    def wait_for_the_end(self):
        """What runs in its cgroups, and is still there after a while."""
        groups = [path / self.cgroup for path in self.hierarchies()]
        deadline = time.monotonic() + BOOT_SECONDS
        while any(self.remove_cgroups(group) for group in groups):
            if time.monotonic() > deadline:
                return run("grep", "-r", ".", *groups, "--include=cgroup.procs", check=False
                           ).stdout.splitlines() or ["a cgroup"]
            time.sleep(0.05)
        return []

    @staticmethod
    def remove_cgroups(top):
        """Whether one is left."""
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return top.exists()

    def wait_for(self, what, condition, seconds=BOOT_SECONDS):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise CommandFailed(f"the machine: not within {seconds} s: {what}\n{self.log()}")
            time.sleep(0.05)

    # Inside

    def run(self, *command, **options):
        """Runs a command of the machine, in it."""
        return run("nsenter", "--target", self.pid, "--all", *command, **options)

    def from_host(self, *command, **options):
        """Runs a command of the host, on the machine's network."""
        return run("nsenter", "--target", self.pid, "--net", *command, **options)

    def ctr(self, *arguments, namespace="default", **options):
        return self.run("ctr", "--namespace", namespace, *arguments, **options)

    def systemctl(self, *arguments, **options):
        return self.run("systemctl", *arguments, **options).stdout

    def show(self, unit, name):
        """A property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit).strip()

    def journal(self, *arguments):
        return self.run("journalctl", "--no-pager", "-o", "cat", *arguments, check=False).stdout

    def log(self):
        text = (self.folder / "console").read_text(errors="replace")
        if self.pid is not None and self.process.poll() is None:
            text += self.journal("-n", "60")
        return text

    def pids(self, program):
        """Processes of the machine, by the numbers that it has for them."""
        found = []
        for comm in self.path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):  # it may have ended
                if comm.read_text() == f"{program[:15]}\n":
                    found.append(int(comm.parent.name))
        return found

    def kill(self, *programs):
        """Ends all processes of programs at once, as crashes do; returns which."""
        pids = [pid for program in programs for pid in self.pids(program)]
        self.run("kill", "-KILL", *pids)
        return pids

    def mounts_of_kapsule(self):
        text = self.path("/proc/1/mountinfo").read_text()
        return [line for line in text.splitlines() if "/var/lib/kapsule" in line.split()[4]]

    # Kapsule, as its documents say

    def install_kapsule(self):
        for name in PROGRAMS:
            self.write(f"/usr/bin/kapsule-{name}", (BIN / f"kapsule-{name}").read_bytes(), 0o755)
        configs = PROJECT / "configs"
        for unit in (configs / "systemd").glob("*.service"):
            self.write(f"/usr/lib/systemd/system/{unit.name}", unit.read_bytes())
        for kind in ("sysusers", "tmpfiles"):
            self.write(f"/usr/lib/{kind}.d/kapsule.conf",
                       (configs / "systemd" / f"kapsule.{kind}").read_bytes())
        self.write("/etc/kapsule/snapshotter.toml",
                   (configs / "kapsule-snapshotter.toml").read_bytes())
        self.run("systemd-sysusers")
        self.run("systemd-tmpfiles", "--create", "/usr/lib/tmpfiles.d/kapsule.conf")

    def install_key(self, name, folder):
        """Gives it a private key; the keyprovider reads it at its next start or reload."""
        self.write(f"/etc/kapsule/keys/{name}.pem", (folder / "private.pem").read_bytes(), 0o600)
        self.run("systemd-tmpfiles", "--create", "/usr/lib/tmpfiles.d/kapsule.conf")

    def configure_containerd(self):
        """As configs/containerd/1.6.toml says."""
        self.write("/etc/containerd/config.toml", f"""version = 2
[proxy_plugins.kapsule]
  type = "snapshot"
  address = "/run/kapsule/snapshotter.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "kapsule"
    disable_snapshot_annotations = false
""")

    # Images and containers

    socket = property(lambda self: self.path("/run/containerd/containerd.sock"))
    cri = CriNode.cri
    pull_image = CriNode.pull_image
    run_pod = CriNode.run_pod
    pull = Node.pull
    run_container = Node.run_container

    def push_pause(self, layout):
        """Pushes the image that holds a pod's namespaces; `layout` changes."""
        make_pause_image(layout)
        self.from_host("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false",
                       f"oci:{layout}:base", f"docker://{PAUSE}")
