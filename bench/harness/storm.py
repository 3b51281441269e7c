"""kill -9 of kapsule-fuse under verifying readers: how long a read stands still."""

import json
import os
import random
import re
import signal
import subprocess
import threading
import time

from node import CommandFailed

# What a successor logs about itself: how long from its exec to its first reply.
FIRST_REPLY = re.compile(r"first reply after ([\d.]+) ms")
SUCCESSOR_SECONDS = 10
BETWEEN_KILLS = (0.05, 0.25)  # seconds of undisturbed reading, at random


class Reader:
    """tools/storm_reader.cc with what it has told so far."""

    def __init__(self, program, file, reference):
        self.process = subprocess.Popen([program, file, reference], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        self.steps, self.result, self.complaints = [], None, []
        self._threads = [threading.Thread(target=self._collect),
                         threading.Thread(target=self._complain)]
        for thread in self._threads:
            thread.start()

    def _collect(self):
        for line in self.process.stdout:
            told = json.loads(line)
            if "reader" in told:
                self.steps.append((told["start"], told["end"]))
            else:
                self.result = told

    def _complain(self):
        for line in self.process.stderr:
            if len(self.complaints) < 20:
                self.complaints.append(line.strip())

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join()
        return self.result or {"bytes": 0, "errors": 1, "wrong": 0}


def restarts(node):
    return [float(found) for found in FIRST_REPLY.findall(node.log("snapshotter"))]


def wait_for_successor(node, known):
    deadline = time.monotonic() + SUCCESSOR_SECONDS
    while time.monotonic() < deadline:
        if len(restarts(node)) > known:
            return
        time.sleep(0.01)
    raise CommandFailed(f"no successor said within {SUCCESSOR_SECONDS} s that it replied:\n"
                        f"{node.log('snapshotter')[-1500:]}")


def stalls(kills, steps, restart_ms):
    """For each kill the longest step that was under way then or began before the next one,
    less the start of the successor; milliseconds."""
    found = []
    for number, (killed, restart) in enumerate(zip(kills, restart_ms)):
        end = kills[number + 1] if number + 1 < len(kills) else time.monotonic_ns()
        longest = max((step[1] - step[0] for step in steps if step[1] > killed and step[0] < end),
                      default=0)
        found.append(max(0.0, longest / 1e6 - restart))
    return found


def run_storm(program, node, file, reference, count, log):
    """(what the readers say, the stalls, the successors' starts)."""
    known = len(restarts(node))
    reader = Reader(program, file, reference)
    kills = []
    try:
        time.sleep(1)
        for number in range(count):
            [pid] = node.fuse_pids()
            kills.append(time.monotonic_ns())
            os.kill(pid, signal.SIGKILL)
            wait_for_successor(node, known + number)
            time.sleep(random.uniform(*BETWEEN_KILLS))
        time.sleep(0.5)
    finally:
        result = reader.stop()
        for complaint in reader.complaints[:5]:
            log(f"    {complaint}")
    restart_ms = restarts(node)[known:]
    return result, stalls(kills, reader.steps, restart_ms), restart_ms
