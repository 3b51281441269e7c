"""The lines that are not ratios of reads: each stage gives figures by line name."""

import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess

from harness import sampling, storm, system
from harness.stand import BenchNode, make_shards
from node import BIN, FUSE_UID, CommandFailed, run

# How kapsule-snapshotter tells kapsule-fuse the sizes of its caches.
CACHE_OPTION = re.compile(rb"--(?:read-ahead|chunk-cache|index-cache)-bytes[=\0](\d+)")


def kills(stand, options):
    [file] = stand.pulled(stand.memory_node, "model-64k").files
    result, stalls, restarts = storm.run_storm(
        stand.tools / "storm_reader", stand.memory_node, file, stand.plain_in_memory, options.kills,
        stand.log)
    ordered = sorted(stalls)
    return {
        "kills-errors": [result["errors"] + result["wrong"]],
        "kills-median": stalls,
        "kills-p99": [ordered[len(ordered) * 99 // 100]],
    }, {"kills": len(stalls), "read_gib": round(result["bytes"] / 2**30, 1), "stalls_ms": stalls,
        "restarts_ms": restarts,
        "note": f"{len(stalls)} kills, {result['bytes'] / 2**30:.0f} GiB compared; "
                f"restart {statistics.median(restarts):.0f} ms"}


def mount(stand, options):
    folder = stand.folder / "mount"
    folder.mkdir()
    folder.chmod(0o711)
    try:
        done = run(stand.tools / "mount_timer", folder, BIN,
                   stand.disk_node.keys_folder / "keys.sock", stand.keys / "public.pem", FUSE_UID,
                   options.rounds * 5 + 1)
    finally:
        shutil.rmtree(folder)
    taken = [json.loads(line) for line in done.stdout.splitlines()]
    taken = [sample for sample in taken if sample["round"] > 0]

    def of(size):
        return [sample["mount_ms"] for sample in taken if sample["size"] == size]

    growth = [large / small for large, small in zip(of("1 TiB"), of("1 MiB"))]
    return {"mount-1-mib": of("1 MiB"), "mount-1-gib": of("1 GiB"), "mount-1-tib": of("1 TiB"),
            "mount-growth": growth}, {"samples": taken}


def cache_mib(pid):
    found = CACHE_OPTION.findall(pathlib.Path(f"/proc/{pid}/cmdline").read_bytes())
    return sum(int(size) for size in found) / 2**20


def read_cold(stand, node, files, total):
    """`total` bytes of them, or a little more, each pass cold; and what fills the caches."""
    drop = [word for blob in node.blobs() for word in ("--drop", blob)]

    def read(*words):
        return sampling.run_reader(stand.tools / "reader", [*words, "--cold", *drop, *files])["bytes"]

    done = read("read", "--readers", 8) + read("random", "--count", 4000)
    while done < total:
        done += read("read")


# So small that the first layers fill it: otherwise each further one would be charged
# for its part of a cache of a fixed size.
RSS_SETTINGS = f"index_cache_bytes = {1 << 20}\n"


def rss(stand, options):
    one, pattern, count = stand.image("model-64k")
    folder = stand.folder / "rss-shards"
    kib = {}
    with BenchNode(stand.folder / "rss", stand.disk_node.registry, RSS_SETTINGS) as node:
        node.install_key(stand.keys / "private.pem")
        node.pull(one)
        files = node.wait_for_files(pattern, count)
        read_cold(stand, node, files, options.rss_bytes)
        [pid] = node.fuse_pids()
        kib[layers(node)] = alone = system.resident_kib(pid)
        make_shards(folder, options.rss_layers, options.rss_bytes // options.rss_images
                    // options.rss_layers)
        try:
            # The same bytes give other layers at each build: every layer has its own key.
            for number in range(options.rss_images):
                name = f"many-{number}"
                node.pull(stand.build(name, f"FROM {folder}\n"))
                files = node.wait_for_files(f"models/{name}/*.safetensors", options.rss_layers)
                read_cold(stand, node, files, 1)
                kib[layers(node)] = system.resident_kib(pid)
        finally:
            shutil.rmtree(folder)
        caches = cache_mib(pid)
    few, many = sorted(kib)[1], max(kib)
    return {"rss-one": [alone / 1024 - caches],
            "rss-layer": [(kib[many] - kib[few]) / (many - few)]}, {
        "kib": kib, "caches_mib": caches,
        "note": ", ".join(f"{size / 1024:.0f} MiB with {count} layers" for count, size in kib.items())
                + f"; caches {caches:.0f} MiB"}


def layers(node):
    return len(list(node.kapsule_root.glob("views/*")))


def timed(*command):
    """Seconds, and the most resident MiB, of a command."""
    start = os.times().elapsed
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise CommandFailed(f"{command}: {errors.decode(errors='replace')}")
    return os.times().elapsed - start, usage.ru_maxrss / 1024


def build(stand, options):
    """Both read a plain OCI layout's or a file's bytes from the disk and write a layout."""
    work = stand.folder / "build"
    work.mkdir()
    model, public = build_model(stand, work, options.build_mib), stand.keys / "public.pem"
    (work / "Modelfile").write_text(f"FROM {model}\n")
    ctl = (BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "--progress", "none")
    run(*ctl, "-t", "bench:plain", "-o", work / "plain", work)
    commands = {
        "kapsule-ctl build": (*ctl, "-t", "bench:enc", "-o", work / "out", "--encryption-key", public,
                              work),
        "skopeo copy": ("skopeo", "copy", "--insecure-policy", "--encryption-key", f"jwe:{public}",
                        f"oci:{work}/plain:plain", f"oci:{work}/out:enc"),
    }
    samples, ratios = [], []
    for number in range(options.build_rounds + 1):
        seconds = {}
        for name, command in commands.items():
            shutil.rmtree(work / "out", ignore_errors=True)
            system.sync(work)
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("1")
            window = system.Window()
            seconds[name], mib = timed(*command)
            samples.append({"program": name, "round": number, "seconds": seconds[name],
                            "peak_mib": round(mib), "foreign": window.foreign()})
        if number > 0 and all(sample["foreign"] <= sampling.FOREIGN_LIMIT for sample in samples[-2:]):
            ratios.append(seconds["skopeo copy"] / seconds["kapsule-ctl build"])
    size = model.stat().st_size
    shutil.rmtree(work)
    kept = [sample for sample in samples if sample["round"] > 0]
    notes = []
    for name in commands:
        of = [sample for sample in kept if sample["program"] == name]
        notes.append(f"{name} {statistics.median(s['seconds'] for s in of):.2f} s, "
                     f"at most {max(s['peak_mib'] for s in of)} MiB")
    return {"build": ratios}, {"samples": samples, "bytes": size,
                               "dropped": options.build_rounds - len(ratios),
                               "note": "; ".join(notes)}


def build_model(stand, work, mib):
    """The model itself where it is as large as that, else one that begins with it."""
    if mib <= stand.mib:
        return stand.model
    model = work / stand.model.name
    shutil.copyfile(stand.model, model)
    with open(model, "ab") as file:
        for _ in range(mib - stand.mib):
            file.write(os.urandom(1 << 20))
    return model


STAGES = {"kills": kills, "mount": mount, "rss": rss, "build": build}
