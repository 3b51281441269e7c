"""The kill storm: containers read on, and only ever right, while every daemon is killed.

Three readers in running containers (read, mmap, open + stat + read) compare each byte
with the source. Short by default; with KAPSULE_LONG=1, 500 kills and 500 mounts.
Needs root and the programs of build/bin (KAPSULE_BIN names another folder).
"""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import unittest

from node import BIN, PATIENT, PROJECT, Node, make_base_image, mounts_below, run, unique_name
from service_manager import ServiceManager

LONG = os.environ.get("KAPSULE_LONG") == "1"
KILLS = 500 if LONG else 8
MOUNTS = 500 if LONG else 20
MODEL = "/models/tiny/model.gguf"
MODES = ("read", "mmap", "open")
TAKEN_OVER = re.compile(r"took over: \d+ views, (\d+) requests again, first reply after (\d+) ms")
PATIENCE_SECONDS = 90
ABANDON_SECONDS = 2


def setUpModule():
    global work, node, image, other
    work = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-failover-"))
    unittest.addModuleCleanup(shutil.rmtree, work)
    work.chmod(0o755)
    run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-2048", "-o", work / "keys")
    base = make_base_image(work / "base")
    node = Node()
    try:
        # Programs of its own, so that a test can put others in their place.
        programs = node.folder / "bin"
        programs.mkdir()
        for name in ("kapsule-fuse", "kapsule-holder"):
            shutil.copy(BIN / name, programs / name)
        node.fuse_program = programs / "kapsule-fuse"
        node.start_all()
        unittest.addModuleCleanup(node.stop)
    except BaseException:
        node.stop()
        raise
    node.install_key(work / "keys" / "private.pem")
    image = publish(base, "tiny", 24)
    other = publish(base, "other", 1)
    node.pull(image)
    (work / "source").mkdir()
    shutil.copy(work / "tiny.gguf", work / "source" / "model")
    shutil.copy(BIN / "verifying_reader", work / "source" / "verifying_reader")


def publish(base, name, mib):
    """Builds an encrypted image of a model of its own and pushes it; returns its reference."""
    model = work / f"{name}.gguf"
    run(PROJECT / "scripts" / "make-tiny-gguf", model, "--marker", f"marker-of-{name}",
        "--pad-mib", mib)
    (work / f"Modelfile-{name}").write_text(f"FROM {model}\n")
    reference = f"{node.registry}/acme/{name}:enc"
    run(BIN / "kapsule-ctl", "build", "-f", work / f"Modelfile-{name}", "-t", reference,
        "--insecure", "--encryption-key", work / "keys" / "public.pem", "--base", base, work)
    return reference


class Reader:
    """A container in which verifying_reader runs until stop()."""

    def __init__(self, mode):
        self.mode = mode
        self.stop_file = work / "source" / f"stop-{mode}"
        self.stop_file.unlink(missing_ok=True)
        self.out = open(work / f"{mode}.out", "w+")
        mount = f"type=bind,src={work}/source,dst=/source,options=rbind:ro"
        self.process = subprocess.Popen(
            ["ctr", "--address", node.socket, "run", "--rm", "--snapshotter", "kapsule",
             "--mount", mount, image, unique_name(), "/source/verifying_reader", mode, MODEL,
             "/source/model", f"/source/{self.stop_file.name}"],
            stdin=subprocess.DEVNULL, stdout=self.out, stderr=subprocess.STDOUT,
            start_new_session=True)

    def lines(self):
        return (work / f"{self.mode}.out").read_text(errors="replace").splitlines()

    def bad(self):
        return [line for line in self.lines() if not line.startswith(("slow", "end"))]

    def slow(self):
        """(begin, end) in seconds of time.monotonic() of each long wait."""
        waits = [line.split() for line in self.lines() if re.fullmatch(r"slow \d+ \d+", line)]
        return [(int(begin) / 1e6, (int(begin) + int(length)) / 1e6) for _, begin, length in waits]

    def stop(self):
        """Passes, bytes and errors; raises where it hangs."""
        self.stop_file.touch()
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the {self.mode} reader hangs: {self.lines()[-5:]}")
        finally:
            self.out.close()
            self.stop_file.unlink()
        last = self.lines()[-1].split()
        assert last[0] == "end", self.lines()[-5:]
        return [int(number) for number in last[1:]]


class Storm:
    """What happened to the data plane, from its log."""

    def __init__(self):
        self.log = node.folder / "logs" / "snapshotter.log"
        self.offset = self.log.stat().st_size
        self.text = ""

    def takeovers(self):
        with open(self.log, "rb") as file:
            file.seek(self.offset)
            piece = file.read()
        self.offset += len(piece)
        self.text += piece.decode(errors="replace")
        return TAKEN_OVER.findall(self.text)

    def wait_for_takeovers(self, count):
        """Returns the seconds that each one since the start needed from exec to first reply."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found := self.takeovers()) < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(found)} take-overs, not {count}:\n{self.text[-4000:]}")
            time.sleep(0.005)
        return [int(milliseconds) / 1000 for _, milliseconds in found]


def only_fuse(except_for=()):
    """The pid of the one kapsule-fuse that is none of `except_for`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        pids = [pid for pid in node.fuse_pids() if pid not in except_for]
        if len(pids) == 1:
            return pids[0]
        time.sleep(0.005)
    raise AssertionError(f"kapsule-fuse: {node.fuse_pids()}:\n{node.log('snapshotter')[-3000:]}")


def kapsule_ctl(*arguments, check=True):
    return run(BIN / "kapsule-ctl", *arguments, "--address", node.folder / "snapshotter.sock",
               check=check)


def status():
    return json.loads(kapsule_ctl("status", "--json").stdout)


def descriptors(pid):
    """How many descriptors a process has, by what they lead to."""
    counts = {}
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = re.sub(r"\d+", "N", os.readlink(fd).split("/")[-1])
            target = re.sub(r"[0-9a-fN]{40,}", "DIGEST", target)
            counts[target] = counts.get(target, 0) + 1
    return counts


def loop_devices():
    """Backing files below the node's folder."""
    files = []
    for path in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached meanwhile
            files.append(path.read_text().strip())
    return [file for file in files if str(node.folder) in file or "kapsule" in file]


def install_fuse(program):
    """Puts a program in kapsule-fuse's place, as a package does."""
    new = node.fuse_program.with_suffix(".new")
    if isinstance(program, str):
        new.write_text(program)
    else:
        shutil.copy(program, new)
    new.chmod(0o755)
    new.rename(node.fuse_program)


def wait_for(condition, what, seconds=PATIENCE_SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not so: {what}:\n{node.log('snapshotter')[-3000:]}")
        time.sleep(0.05)


def begin_anew(settings=""):
    """Ends the data plane and starts the snapshotter with these settings."""
    if "snapshotter" in node.daemons:
        node.stop_daemon("snapshotter", signal.SIGINT)
    node.settings.write_text(PATIENT + settings)
    node.start_snapshotter()


def abandoned_after(seconds):
    return f"abandon_after_ms = {seconds * 1000}\n"


class AbandonedTest(unittest.TestCase):
    """What is left where the snapshotter and kapsule-fuse have both gone for good."""

    def setUp(self):
        self.readers = []
        self.addCleanup(self.stop_readers)
        self.addCleanup(begin_anew)
        begin_anew(abandoned_after(ABANDON_SECONDS))

    def stop_readers(self):
        for reader in self.readers:
            if reader.process.poll() is None:
                reader.stop()

    def start_reader(self):
        reader = Reader("read")
        self.readers.append(reader)
        # Slower than a page from the cache: it asks kapsule-fuse.
        wait_for(lambda: reader.slow() or reader.bad(), "it reads")
        self.assertEqual(reader.bad(), [])
        return reader

    def assert_reads_anew(self):
        reader = self.start_reader()
        passes, _, errors = reader.stop()
        self.assertGreater(passes, 0)
        self.assertEqual((reader.bad(), errors), ([], 0))

    def assert_readers_end(self):
        holder, = node.holder_pids()
        reader = self.start_reader()
        fuse = only_fuse()
        node.stop_daemon("snapshotter", signal.SIGKILL)
        time.sleep(1.5 * ABANDON_SECONDS)  # kapsule-fuse alone keeps it
        self.assertEqual((node.holder_pids(), reader.bad()), ([holder], []))
        killed = time.monotonic()
        os.kill(fuse, signal.SIGKILL)
        # The read that waits may end short, with what it had.
        wait_for(lambda: "Input/output error" in "".join(reader.bad()), "its reads fail",
                 10 * ABANDON_SECONDS)
        self.assertGreater(time.monotonic() - killed, 0.9 * ABANDON_SECONDS)
        wait_for(lambda: not node.holder_pids() and not node.pids_of("kapsule-fetch"),
                 "nothing of the data plane is left", 10 * ABANDON_SECONDS)
        self.assertIn("neither kapsule-snapshotter nor kapsule-fuse was connected",
                      node.log("snapshotter"))
        node.start_snapshotter()
        self.assertGreater(reader.stop()[2], 0)
        self.assert_reads_anew()
        self.assertEqual(len(node.holder_pids()), 1)

    def test_readers_end_when_nobody_comes_back(self):
        self.assert_readers_end()

    def test_a_service_manager_that_has_the_descriptors_too_holds_nothing_up(self):
        with ServiceManager(node.folder / "notify.sock") as manager:
            begin_anew(abandoned_after(ABANDON_SECONDS))
            wait_for(lambda: "fuse.01" in manager.stored, "it has the FUSE connection")
            self.assert_readers_end()
            node.stop_daemon("snapshotter", signal.SIGINT)
            wait_for(lambda: not manager.stored, "it has nothing")

    def test_one_who_comes_back_in_time_goes_on(self):
        # Away for longer than that in all, and each time with most of it left for the next start.
        seconds = 5 * ABANDON_SECONDS
        begin_anew(abandoned_after(seconds))
        reader = self.start_reader()
        holder, = node.holder_pids()
        for _ in range(5):
            fuse = only_fuse()
            node.stop_daemon("snapshotter", signal.SIGKILL)
            os.kill(fuse, signal.SIGKILL)
            time.sleep(seconds / 4)
            node.start_snapshotter()
            only_fuse({fuse})
        self.assertEqual(node.holder_pids(), [holder])
        self.assertEqual((reader.stop()[2], reader.bad()), (0, []))


class FailoverTest(unittest.TestCase):
    @contextlib.contextmanager
    def reading(self, report=None):
        """Three containers that read; at the end none of them has seen an error."""
        begun = time.monotonic()
        readers = [Reader(mode) for mode in MODES]
        try:
            while any(not reader.lines() and reader.process.poll() is None for reader in readers):
                if time.monotonic() > begun + 30:
                    break  # none of them was ever slow
                time.sleep(0.05)
            started = time.monotonic()
            yield readers
            # A machine on which all was slow to start is slow to read, too.
            time.sleep(min(max(0.5, started - begun), 10))
        finally:
            results = {}
            problems = []
            for reader in readers:
                try:
                    results[reader.mode] = reader.stop()
                except AssertionError as error:
                    problems.append(str(error))
        bad = [line for reader in readers for line in reader.bad()]
        self.assertEqual(problems + bad, [], node.log("snapshotter")[-3000:])
        for mode, (passes, size, errors) in results.items():
            self.assertGreater(passes, 1, mode)
            self.assertEqual(errors, 0, mode)
            print(f"  {mode}: {passes} passes, {size >> 20} MiB, every byte right")
        if report:
            report(readers)

    def test_kills_of_the_data_plane(self):
        kills, restarts = [], []

        def report(readers):
            waits = sorted(wait for reader in readers for wait in reader.slow())
            stalls = []
            for at, restart in zip(kills, restarts):
                # Waits that this kill is in the middle of, or that began while nobody served.
                ends = [end for begin, end in waits if begin < at + restart and end > at]
                stalls.append(max([end - at for end in ends], default=0))
            beyond = sorted(stall - restart for stall, restart in zip(stalls, restarts))

            def line(name, values):
                values = sorted(values)
                p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
                return (f"  {name}: median {statistics.median(values) * 1000:.0f} ms,"
                        f" p99 {p99 * 1000:.0f} ms, longest {values[-1] * 1000:.0f} ms")

            print(f"  {len(kills)} kills")
            print(line("stall of a reader", stalls))
            print(line("restart (exec to first reply)", restarts))
            print(line("stall minus restart", beyond))
            if LONG:
                self.assertLess(statistics.median(beyond), 0.05)
                self.assertLess(beyond[int(len(beyond) * 0.99)], 0.3)

        with self.reading(report):
            storm = Storm()
            pid = only_fuse()
            for number in range(KILLS):
                time.sleep(random.uniform(0.02, 0.25))
                kills.append(time.monotonic())
                os.kill(pid, signal.SIGKILL)
                restarts[:] = storm.wait_for_takeovers(number + 1)
                pid = only_fuse({pid})
            self.assertEqual(status()["failover"], True)

    def test_a_successor_is_killed_before_it_serves(self):
        with self.reading():
            pid = only_fuse()
            for _ in range(3):
                os.kill(pid, signal.SIGKILL)
                successor = only_fuse({pid})
                time.sleep(random.uniform(0, 0.02))
                os.kill(successor, signal.SIGKILL)
                pid = only_fuse({pid, successor})
                time.sleep(1)
            self.assertEqual(only_fuse(), pid, node.log("snapshotter")[-3000:])

    def test_kills_of_the_snapshotter(self):
        with self.reading():
            pid, mounts = only_fuse(), mounts_below(node.kapsule_root)
            for _ in range(2):
                node.stop_daemon("snapshotter", signal.SIGKILL)
                time.sleep(0.3)
                node.start_snapshotter()
                self.assertEqual(only_fuse(), pid, node.log("snapshotter")[-3000:])
                self.assertEqual(mounts_below(node.kapsule_root), mounts)

    def test_kills_of_both_at_once(self):
        with self.reading():
            for number in range(3):
                pid, mounts = only_fuse(), mounts_below(node.kapsule_root)
                node.daemons["snapshotter"].send_signal(signal.SIGSTOP)  # so that it starts none
                os.kill(pid, signal.SIGKILL)
                node.stop_daemon("snapshotter", signal.SIGKILL)
                time.sleep(0.2 * number)
                node.start_snapshotter()
                self.assertNotEqual(only_fuse(), pid)
                self.assertEqual(mounts_below(node.kapsule_root), mounts)

    def test_a_restart_of_the_service_is_an_upgrade_too(self):
        with self.reading():
            pid = only_fuse()
            self.assertEqual(node.stop_daemon("snapshotter"), 0)
            node.start_snapshotter()
            self.assertEqual(only_fuse(), pid, node.log("snapshotter")[-3000:])
            self.assertEqual(node.stop_daemon("snapshotter"), 0)
            install_fuse(BIN / "kapsule-fuse")
            node.start_snapshotter()
            self.assertNotEqual(only_fuse({pid}), pid)
            time.sleep(0.5)

    def test_upgrades_under_load(self):
        with self.reading():
            for _ in range(20 if LONG else 3):
                before = status()
                done = json.loads(kapsule_ctl("upgrade", "--json").stdout)
                after = status()
                self.assertEqual(done["oldPid"], before["pid"])
                self.assertEqual(done["newPid"], after["pid"])
                self.assertNotEqual(before["pid"], after["pid"])
                self.assertEqual(after["takeovers"], before["takeovers"] + 1)
                self.assertEqual(after["layers"], before["layers"])
                self.assertEqual(only_fuse(), after["pid"])

    def test_an_upgrade_to_a_broken_program_goes_back(self):
        broken = {"does not start": "#!/bin/sh\necho no such library >&2\nexit 1\n",
                  "never answers": "#!/bin/sh\nexec sleep 100\n"}
        with self.reading():
            before = status()
            try:
                for what, program in broken.items():
                    if what == "never answers" and not LONG:
                        continue  # the upgrade waits as long as keys may take
                    install_fuse(program)
                    done = kapsule_ctl("upgrade", check=False)
                    self.assertNotEqual(done.returncode, 0, what)
                    self.assertIn(f"kapsule-fuse {before['pid']} serves on", done.stderr, what)
                    self.assertEqual(status(), before, what)
                    self.assertEqual(only_fuse(), before["pid"], what)
            finally:
                install_fuse(BIN / "kapsule-fuse")
            kapsule_ctl("upgrade")
            self.assertNotEqual(status()["pid"], before["pid"])

    def test_mounts_and_removals_leave_nothing_behind(self):
        self.addCleanup(node.ctr, "images", "remove", "--sync", other, check=False)
        with self.reading():
            time.sleep(1)
            before = self.in_use()
            for number in range(MOUNTS):
                node.pull(other)
                if number % 10 == 0:
                    node.run_container(other, "/bin/cat", "/models/other/model.gguf")
                if number % 7 == 3:
                    pid = only_fuse()
                    os.kill(pid, signal.SIGKILL)
                    only_fuse({pid})
                node.ctr("images", "remove", "--sync", other)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while (now := self.in_use()) != before and time.monotonic() < deadline:
                time.sleep(0.1)
            self.assertEqual(now, before)

    def in_use(self):
        """Views, mounts, loop devices, and the descriptors of the holder and of kapsule-fuse."""
        opened = {name: count for name, count in descriptors(only_fuse()).items()
                  if not name.startswith(("socket", "anon_inode"))}
        return (status()["layers"], mounts_below(node.kapsule_root), loop_devices(),
                descriptors(node.holder_pids()[0]), opened)

    def test_without_readers_the_last_view_goes(self):
        """Runs last: what is left of the images is nothing."""
        node.ctr("images", "remove", "--sync", image)
        wait_for(lambda: status()["layers"] == 0, "no view is left")
        self.assertEqual([point for point in mounts_below(node.kapsule_root) if "/l/" in point], [])
        wait_for(lambda: not loop_devices(), "no loop device is left")
        wait_for(lambda: not any("DIGEST" in name for name in descriptors(node.holder_pids()[0])),
                 "the holder holds nothing of a view")


if __name__ == "__main__":
    unittest.main()
