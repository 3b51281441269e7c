"""containerd 2.x's own suite for snapshotters. scripts/test --peers runs it."""

import os
import unittest

from node import BIN, CommandFailed, run
from peer_node import PEERS


class ConformanceTest(unittest.TestCase):
    def test_containerd_2s_suite_passes(self):
        done = run(PEERS / "conformance-2" / "suite", "-test.root", "-test.v", "-test.parallel", 4,
                   "-test.timeout", "40m", check=False, timeout=2500,
                   env={**os.environ, "KAPSULE_BIN": str(BIN)})
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).splitlines()
            raise CommandFailed("\n".join(line[:500] for line in lines if "fail" in line.lower()))
        self.assertIn("--- PASS: TestSnapshotter", done.stdout)
        self.assertNotIn("no tests to run", done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
