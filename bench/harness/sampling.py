"""Samples: taken in turns, thrown away where the machine was busy with something else."""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import typing

from harness import system
from harness.lines import Cell
from node import CommandFailed, run

FOREIGN_LIMIT = 0.10
# Memory that was free for long is not backed by the host of a virtual machine; who uses
# it first pays, as processor time of his own. It shows there.
CPU_LIMIT = 1.4
CPU_SLACK_SECONDS = 0.03
# Of a daemon for a byte that it serves; less means that the page cache answered.
LEAST_CPU = 0.02e-9
READER_SECONDS = 60  # a reader that takes longer hangs


@dataclasses.dataclass
class Source:
    """Files to read, and what serves them."""
    files: typing.List[pathlib.Path]
    # Called before each sample, since a daemon may be a new one.
    daemons: typing.Callable[[], typing.List[int]] = lambda: []
    # Dropped from the page cache too, when a read has to be cold.
    below: typing.List[pathlib.Path] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Sample:
    cell: Cell
    round: int
    bytes: int
    seconds: float
    reader_cpu: float
    daemon_cpu: float
    foreign: float
    p50: float = None  # µs
    p99: float = None
    dropped: str = ""  # why

    @property
    def gbs(self):
        return self.bytes / self.seconds / 1e9

    @property
    def cpu(self):
        return self.reader_cpu + self.daemon_cpu

    @property
    def cpu_per_gb(self):
        return self.cpu / self.bytes * 1e9


def take(reader, cell, source, number):
    """One sample with the program `reader`."""
    command = [reader, cell.mode, *source.files, "--readers", cell.readers]
    if cell.stage == "warm":
        run_reader(reader, ["read", *source.files])
    else:
        command += ["--cold", "--seed", number]
        for path in source.below:
            command += ["--drop", path]
    daemons = source.daemons()
    window, before = system.Window(), system.cpu_seconds(daemons)
    result = run_reader(reader, command[1:])
    daemon_cpu, foreign = system.cpu_seconds(daemons) - before, window.foreign()
    if daemons and cell.stage != "warm" and daemon_cpu < result["bytes"] * LEAST_CPU:
        raise CommandFailed(f"{source.files[0]} was read from the page cache, not from its server")
    return Sample(cell, number, result["bytes"], result["seconds"], result["cpu"], daemon_cpu,
                  foreign, result.get("p50"), result.get("p99"))


def run_reader(reader, arguments):
    try:
        return json.loads(run(reader, *arguments, timeout=READER_SECONDS).stdout)
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"reader {arguments[-1]} hangs") from error


def judge(samples):
    """Drops the samples of one cell that others disturbed, and those that cost far more
    processor time than most of them."""
    usual = statistics.median_low(sample.cpu for sample in samples)
    for sample in samples:
        sample.dropped = ""
        if sample.foreign > FOREIGN_LIMIT:
            sample.dropped = f"foreign CPU {sample.foreign:.0%}"
        elif sample.cpu > usual * CPU_LIMIT + CPU_SLACK_SECONDS:
            sample.dropped = f"own CPU {sample.cpu:.2f} s where {usual:.2f} s is usual"


def good(samples):
    return [sample for sample in samples if not sample.dropped]


def read_in_turns(reader, cells, source_of, rounds, spare, log):
    """All samples by cell, and what went wrong by cell.

    In each round one sample of each, the first round thrown away, at most `spare`
    rounds added while some cell has fewer than `rounds` good ones.
    """
    sources = {cell: source_of(cell.source) for cell in cells}
    samples, problems = {cell: [] for cell in cells}, {}
    for number in range(rounds + spare + 1):
        order = cells[number % len(cells):] + cells[:number % len(cells)]
        for cell in (cell for cell in order if cell not in problems):
            try:
                sample = take(reader, cell, sources[cell], number)
            except CommandFailed as error:
                problems[cell] = str(error)
                log(f"    {cell.source} {cell.mode}: {error}")
                continue
            if number > 0:
                samples[cell].append(sample)
        if number < rounds:
            continue
        whole = [taken for cell, taken in samples.items() if cell not in problems]
        for taken in whole:
            judge(taken)
        if all(len(good(taken)) >= rounds for taken in whole):
            break
    for cell in (cell for cell in cells if cell not in problems):
        log(f"    {cell.source:20s} {cell.mode:7s} x{cell.readers}  {describe(samples[cell])}")
    return samples, problems


def describe(taken):
    kept = good(taken)
    if not kept:
        return f"all {len(taken)} samples dropped: {taken[-1].dropped}"
    if kept[0].p50 is not None:
        text = (f"p50 {statistics.median(s.p50 for s in kept):.0f} µs, "
                f"p99 {statistics.median(s.p99 for s in kept):.0f} µs")
    else:
        speeds = [sample.gbs for sample in kept]
        text = f"{statistics.median(speeds):6.2f} GB/s [{min(speeds):.2f} … {max(speeds):.2f}]"
    return f"{text}, {len(kept)} kept, {len(taken) - len(kept)} dropped"
