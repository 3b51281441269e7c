"""The goals: what is measured, against what, and when it is met."""

import dataclasses
import typing


@dataclasses.dataclass(frozen=True)
class Goal:
    sign: str  # "≥" or "≤"
    value: float

    def met(self, figure):
        return figure >= self.value if self.sign == "≥" else figure <= self.value

    def share(self, figure):
        """How much of the goal was reached; 1 and more is met."""
        if self.sign == "≥":
            return figure / self.value
        return self.value / figure if figure > 0 else 2.0

    def __str__(self):
        return f"{self.sign} {self.value:g}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way of reading one source. Cells of a stage are read in turns."""
    stage: str
    source: str
    mode: str  # of tools/reader.cc
    readers: int = 1


@dataclasses.dataclass(frozen=True)
class Line:
    group: str  # what --only names
    name: str
    title: str
    unit: str  # "×" for ratios
    goal: Goal
    # A ratio of two cells in the same round, or a figure of one.
    of: typing.Optional[Cell] = None
    to: typing.Optional[Cell] = None
    figure: str = "gbs"  # member of sampling.Sample


def at_least(value):
    return Goal("≥", value)


def at_most(value):
    return Goal("≤", value)


WAYS = (("read", "sequential read"), ("scan", "mmap scan"))


def _ratios():
    for mode, words in WAYS:
        yield Line("cold", f"cold-{mode}", f"cold {words}, ciphertext on disk ÷ plain ext4", "×",
                   at_least(1.0), Cell("disk", "kapsule-disk", mode), Cell("disk", "ext4", mode))
    for group, source, title, goal in (
            ("copy", "copy-only", "÷ copy-only server on the same path", 0.52),
            ("gocryptfs", "gocryptfs", "÷ gocryptfs", 3.9),
            ("passthrough", "passthrough_ll", "÷ passthrough_ll", 3.9)):
        for mode, words in WAYS:
            yield Line(group, f"{group}-{mode}", f"cold {words}, ciphertext in memory {title}", "×",
                       at_least(goal), Cell("memory", "kapsule-memory", mode),
                       Cell("memory", source, mode))
    for mode, words in WAYS:
        yield Line("loop", f"loop-{mode}", f"cold {words}, in memory, loop ÷ file-backed", "×",
                   at_least(0.94), Cell("memory", "kapsule-loop", mode),
                   Cell("memory", "kapsule-memory", mode))
    yield Line("warm", "warm-read", "warm re-read ÷ ext4 warm", "×", at_least(1.0),
               Cell("warm", "kapsule-disk", "read"), Cell("warm", "ext4", "read"))
    yield Line("warm", "warm-mmap", "warm mmap scan, every byte ÷ tmpfs", "×", at_least(2.0),
               Cell("warm", "kapsule-disk", "sum"), Cell("warm", "tmpfs", "sum"))
    for source, title, p50 in (("kapsule-disk", "64 KiB chunks", 2.0),
                               ("kapsule-disk-16k", "16 KiB chunks", 1.5)):
        for figure, goal in (("p50", p50), ("p99", 3.0)):
            yield Line("random", f"random-{title.split()[0]}k-{figure}",
                       f"random 4 KiB, disk-cold, {title}, {figure} ÷ ext4", "×", at_most(goal),
                       Cell("random", source, "random"), Cell("random", "ext4", "random"), figure)
    for mode, words in WAYS:
        yield Line("cpu", f"cpu-{mode}", f"reader + daemon CPU per GB, {words}", "s/GB",
                   at_most(0.42), Cell("memory", "kapsule-memory", mode), None, "cpu_per_gb")
    for place in ("disk", "memory"):
        for source, words in (("", "one file"), ("-shards", "different files")):
            yield Line("readers", f"readers{source or '-one'}-{place}",
                       f"8 readers ÷ 1, {words}, ciphertext {'on' if place == 'disk' else 'in'} {place}",
                       "×", at_least(0.95),
                       Cell(f"readers-{place}", f"kapsule-{place}{source}", "read", 8),
                       Cell(f"readers-{place}", f"kapsule-{place}{source}", "read", 1))


RATIOS = tuple(_ratios())

# Measured by code of their own: stages.py.
OTHERS = (
    Line("kills", "kills-errors", "kill -9 under load: errors and wrong bytes", "", at_most(0)),
    Line("kills", "kills-median", "kill -9 under load: stall minus restart, median", "ms", at_most(50)),
    Line("kills", "kills-p99", "kill -9 under load: stall minus restart, 99th percentile", "ms",
         at_most(300)),
    Line("mount", "mount-1-mib", "mount a layer of 1 MiB", "ms", at_most(30)),
    Line("mount", "mount-1-gib", "mount a layer of 1 GiB", "ms", at_most(30)),
    Line("mount", "mount-1-tib", "mount a layer of 1 TiB", "ms", at_most(30)),
    Line("mount", "mount-growth", "mount 1 TiB ÷ 1 MiB", "×", at_most(1.2)),
    Line("rss", "rss-one", "RSS of kapsule-fuse less its caches, 1 layer, 4 GiB read", "MiB",
         at_most(40)),
    Line("rss", "rss-layer", "RSS of kapsule-fuse for each layer more", "KiB", at_most(8)),
    Line("build", "build", "skopeo copy --encryption-key ÷ build + encrypt", "×", at_least(5.0)),
)

LINES = RATIOS + OTHERS
GROUPS = tuple(dict.fromkeys(line.group for line in LINES))
