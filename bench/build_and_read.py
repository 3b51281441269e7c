#!/usr/bin/env python3
"""Building an encrypted image against skopeo, reading it against plain ext4.

Usage: bench/build_and_read.py [--mib N] [--rounds N]     (root; after scripts/build)

Both sides of each ratio run in the same round, one after the other; the ratios are
medians over the rounds, with the spread. Building: `kapsule-ctl build` of a Modelfile
against `skopeo copy --encryption-key` of the same tar, both into an OCI layout, with
the peak resident memory of each. Reading: the whole model through the mounted layer
against a plain file of the same bytes on the same disk, page cache and ciphertext
dropped before each read.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

PROJECT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "end_to_end"))
from node import BIN, Node, make_base_image, run  # noqa: E402


def timed(*command):
    """Seconds and peak resident MiB of a command."""
    start = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command}: {errors.decode()}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def read_seconds(path):
    drop_caches()
    start = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass
    return time.monotonic() - start


def show(name, ratios, detail):
    middle = statistics.median(ratios)
    print(f"{name:58s} {middle:6.2f}  [{min(ratios):.2f} … {max(ratios):.2f}]  {detail}")


def bench_build(work, model, rounds):
    (work / "Modelfile").write_text(f"FROM {model}\n")
    run(BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "-t", "bench:plain", "-o",
        work / "plain", work)
    ratios, ours_mib, theirs_mib, ours_s, theirs_s = [], [], [], [], []
    for _ in range(rounds):
        for folder in ("ours", "theirs"):
            shutil.rmtree(work / folder, ignore_errors=True)
        drop_caches()
        seconds, mib = timed(BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "-t", "bench:enc",
                             "-o", work / "ours", "--encryption-key", work / "keys/public.pem", work)
        drop_caches()
        peer_seconds, peer_mib = timed(
            "skopeo", "copy", "--insecure-policy", "--encryption-key", f"jwe:{work}/keys/public.pem",
            f"oci:{work}/plain:plain", f"oci:{work}/theirs:enc")
        ratios.append(peer_seconds / seconds)
        ours_mib.append(mib)
        theirs_mib.append(peer_mib)
        ours_s.append(seconds)
        theirs_s.append(peer_seconds)
    show("build: skopeo copy --encryption-key ÷ kapsule-ctl build (s)", ratios,
         f"{statistics.median(theirs_s):.1f} s ÷ {statistics.median(ours_s):.1f} s")
    print(f"{'peak memory, kapsule-ctl and skopeo':58s} {max(ours_mib):6.0f} and {max(theirs_mib):.0f} MiB")


def bench_read(work, model, rounds):
    plain = work / "plain.bin"
    shutil.copyfile(model, plain)
    with Node() as node:
        node.install_key(work / "keys" / "private.pem")
        image = f"{node.registry}/acme/bench:enc"
        base = make_base_image(work / "base")
        run(BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "-t", image, "--insecure",
            "--encryption-key", work / "keys" / "public.pem", "--base", base, work)
        node.pull(image)
        node.run_container(image, "/bin/ls", "/models/bench")
        mounted = next(node.kapsule_root.glob("l/*/fs/models/bench/model.gguf"))
        read_seconds(plain), read_seconds(mounted)  # the first fill after idle time is slow
        ratios, gbs = [], []
        size = model.stat().st_size
        for _ in range(rounds):
            ours, ext4 = read_seconds(mounted), read_seconds(plain)
            ratios.append(ext4 / ours)
            gbs.append((size / ours / 1e9, size / ext4 / 1e9))
    show("cold sequential read: Kapsule ÷ plain ext4 (throughput)", ratios,
         f"{statistics.median(g[0] for g in gbs):.2f} ÷ {statistics.median(g[1] for g in gbs):.2f} GB/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kapsule-bench-", dir="/var/tmp") as folder:
        work = pathlib.Path(folder)
        model = work / "model.gguf"
        run(PROJECT / "scripts" / "make-tiny-gguf", model, "--pad-mib", options.mib)
        run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-4096", "-o", work / "keys")
        bench_build(work, model, options.rounds)
        bench_read(work, model, options.rounds)


if __name__ == "__main__":
    main()
