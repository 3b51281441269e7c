"""What the machine does meanwhile: processor time of processes, mounts, its description."""

import ctypes
import os
import pathlib
import platform
import subprocess
import time

TICK = 1 / os.sysconf("SC_CLK_TCK")
CPUS = os.cpu_count()
KERNEL_THREADS = 2  # the process that all of them are children of
MNT_DETACH, MS_RDONLY, MS_NOSUID, MS_NODEV = 2, 1, 2, 4
READ_AHEAD_KB = 2048  # what kapsule-snapshotter sets
_libc = ctypes.CDLL(None, use_errno=True)


def _processes():
    """pid -> (parent, seconds of its own, seconds of the children that it waited for)."""
    found = {}
    for folder in os.scandir("/proc"):
        if not folder.name.isdigit():
            continue
        try:
            with open(f"/proc/{folder.name}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(folder.name)] = (int(fields[1]), (int(fields[11]) + int(fields[12])) * TICK,
                                   (int(fields[13]) + int(fields[14])) * TICK)
    return found


def _tree(processes, root):
    """The pids below `root`, and itself."""
    children = {}
    for pid, (parent, _, _) in processes.items():
        children.setdefault(parent, []).append(pid)
    pids, todo = [], [root]
    while todo:
        pid = todo.pop()
        pids.append(pid)
        todo += children.get(pid, [])
    return pids


class Window:
    """Processor time from its making on: of everything, and of what is not ours.

    Ours is this process with all below it, and the kernel's threads, which work for us.
    """

    def __init__(self):
        self._before = self._read()

    @staticmethod
    def _read():
        processes = _processes()
        ours = processes[os.getpid()][2]
        for root in (os.getpid(), KERNEL_THREADS):
            ours += sum(processes[pid][1] for pid in _tree(processes, root) if pid in processes)
        with open("/proc/stat", encoding="utf-8") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
        busy = (user + nice + system + irq + softirq + steal) * TICK
        return time.monotonic(), busy, ours

    def foreign(self):
        """The share of all processors that others used, 0 to 1."""
        (start, busy, ours), (end, busy_now, ours_now) = self._before, self._read()
        return max(0, (busy_now - busy) - (ours_now - ours)) / ((end - start) * CPUS)


def cpu_seconds(pids):
    """Processor time that the threads of these processes have used, exact to the nanosecond."""
    total = 0
    for pid in pids:
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except OSError:
                pass  # the thread has ended
    return total / 1e9


def resident_kib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise OSError(f"process {pid} has ended")


def proportional_kib(pid):
    """As resident_kib(), with its share of what several processes have."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise OSError(f"process {pid} has ended")


def sync(folder):
    """Of the file system of `folder` alone: sync(2) waits for all, and for dead ones for ever."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), f"syncfs {folder}")
    finally:
        os.close(descriptor)


def mount(source, target, kind, flags=0, data=""):
    """mount(2): mount(8) makes a loop device of an EROFS file without asking."""
    if _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} at {target}: {os.strerror(error)}")


def unmount(target):
    _libc.umount2(os.fsencode(target), MNT_DETACH)


def mount_erofs(view, target):
    """As kapsule-snapshotter does it: file-backed, with direct I/O and its read-ahead."""
    bdi = pathlib.Path("/sys/class/bdi")
    before = set(bdi.glob("erofs-*"))
    mount(view, target, "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, "directio")
    for device in set(bdi.glob("erofs-*")) - before:
        (device / "read_ahead_kb").write_text(str(READ_AHEAD_KB))


def _first_line(*command):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=20, check=False)
    except OSError:
        return None
    return (done.stdout.strip().splitlines() or [None])[0]


def describe(folder, programs):
    """The machine, and the versions of everything that takes part."""
    cpu = next((line.split(":", 1)[1].strip()
                for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    memory = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) / 2**20
    mounted = subprocess.run(["findmnt", "-no", "SOURCE,FSTYPE,OPTIONS", "-T", folder], text=True,
                             stdout=subprocess.PIPE, check=False).stdout.split()
    return {
        "cpu": cpu, "cores": CPUS, "memory_gib": round(memory, 1),
        "kernel": platform.release(), "virtual": _first_line("systemd-detect-virt"),
        "disk": " ".join(mounted[:2]),
        "versions": {
            "kapsule": _first_line(programs / "kapsule-ctl", "--version"),
            "openssl": _first_line("openssl", "version"),
            "containerd": _first_line("containerd", "--version"),
            "skopeo": _first_line("skopeo", "--version"),
            "gocryptfs": _first_line("gocryptfs", "-version"),
            "libfuse": _first_line("pkg-config", "--modversion", "fuse3"),
        },
    }
