"""Which charts are drawn of the results."""

import statistics

from harness.sampling import good
from harness.svg import Bar, Group, bar_chart, number

NAMES = {
    "ext4": "ext4, plain", "tmpfs": "tmpfs, plain", "kapsule-disk": "Kapsule",
    "kapsule-disk-16k": "Kapsule, 16 KiB chunks", "kapsule-memory": "Kapsule",
    "kapsule-loop": "Kapsule, loop device", "copy-only": "copy-only, no crypto",
    "gocryptfs": "gocryptfs", "passthrough_ll": "passthrough_ll, no crypto",
}
MODES = {"read": "sequential read", "scan": "mmap, a byte of each page", "sum": "mmap, every byte"}
GOALS_SHOWN = 2.0


def name_of(cell):
    return NAMES.get(cell.source, cell.source)


def draw(results, samples):
    """(file name, title, SVG) of each chart that there are samples for."""
    drawn = [
        ("goals.svg", "What was reached of each goal", goals(results)),
        ("disk.svg", "Cold, ciphertext on disk", speeds(samples, "disk", "Cold, ciphertext on disk")),
        ("memory.svg", "Cold, ciphertext in memory",
         speeds(samples, "memory", "Cold, ciphertext in memory")),
        ("warm.svg", "Warm page cache", speeds(samples, "warm", "Warm page cache")),
        ("cpu.svg", "Processor time per GB", cpu(samples)),
        ("random.svg", "Random 4 KiB reads, disk-cold", latencies(samples)),
        ("kills.svg", "kill -9 of kapsule-fuse under load", kills(results)),
    ]
    return [chart for chart in drawn if chart[2]]


def goals(results):
    bars = []
    for result in results:
        if not result.values:
            continue
        shares = [result.line.goal.share(value) for value in result.values]
        bars.append(Bar(result.line.name, statistics.median(shares), min(shares), max(shares),
                        "ours" if result.met else "missed",
                        f"{number(result.figure)} {result.line.unit} ({result.line.goal})"))
    if not bars:
        return ""
    return bar_chart("What was reached of each goal", "× goal", [Group("", bars)], 1.0, "goal",
                     "Right of the line is better than the goal. Whiskers: all kept rounds.",
                     GOALS_SHOWN)


def by_mode(samples, stage, bar_of, modes=MODES):
    groups = []
    for mode, words in modes.items():
        bars = [bar_of(cell, good(taken)) for cell, taken in samples.items()
                if (cell.stage, cell.mode) == (stage, mode) and good(taken)]
        if bars:
            groups.append(Group(words, bars))
    return groups


def speeds(samples, stage, title):
    def bar_of(cell, kept):
        values = [sample.gbs for sample in kept]
        return Bar(name_of(cell), statistics.median(values), min(values), max(values), kind_of(cell))

    groups = by_mode(samples, stage, bar_of)
    return bar_chart(title, "GB/s", groups, note="Median; whiskers: all kept rounds.") if groups else ""


def cpu(samples):
    def bar_of(cell, kept):
        values = [sample.cpu_per_gb for sample in kept]
        goal = 0.42 if cell.source == "kapsule-memory" else None
        return Bar(name_of(cell), statistics.median(values), min(values), max(values),
                   kind_of(cell), goal=goal)

    groups = by_mode(samples, "memory", bar_of)
    title = "Processor time per GB: reader and daemon, ciphertext in memory"
    return bar_chart(title, "s/GB", groups, note="Loop device without the kernel's own threads."
                     ) if groups else ""


def latencies(samples):
    cells = {cell: good(taken) for cell, taken in samples.items()
             if cell.mode == "random" and good(taken)}
    groups = []
    for figure in ("p50", "p99"):
        bars = []
        for cell, kept in cells.items():
            values = [getattr(sample, figure) for sample in kept]
            bars.append(Bar(name_of(cell), statistics.median(values), min(values), max(values),
                            kind_of(cell)))
        if bars:
            groups.append(Group(figure, bars))
    return bar_chart("Random 4 KiB reads, disk-cold", "µs", groups) if groups else ""


def kills(results):
    stalls = next((result.values for result in results if result.line.name == "kills-median"), [])
    if not stalls:
        return ""
    edges = [0, 5, 10, 20, 50, 100, 200, 300, float("inf")]
    bars = []
    for low, high in zip(edges, edges[1:]):
        count = sum(low <= stall < high for stall in stalls)
        label = f"{low} to {high} ms" if high != float("inf") else f"{low} ms and more"
        bars.append(Bar(label, count, count, count, "missed" if low >= 300 else "ours", str(count)))
    return bar_chart(f"Longest stall less the restart, {len(stalls)} kills under load", "kills",
                     [Group("", bars)])


def kind_of(cell):
    return "ours" if cell.source.startswith("kapsule") else "other"
