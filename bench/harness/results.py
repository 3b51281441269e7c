"""From samples to lines of the table."""

import dataclasses
import statistics
import typing

from harness.lines import Line
from harness.sampling import good


@dataclasses.dataclass
class Result:
    line: Line
    values: typing.List[float]
    dropped: int = 0
    note: str = ""  # absolute figures
    problem: str = ""  # why there is no figure

    @property
    def figure(self):
        return statistics.median(self.values) if self.values else None

    @property
    def met(self):
        return bool(self.values) and self.line.goal.met(self.figure)

    @property
    def verdict(self):
        return "not measured" if not self.values else "met" if self.met else "missed"

    def as_json(self):
        return {"name": self.line.name, "title": self.line.title, "unit": self.line.unit,
                "goal": str(self.line.goal), "median": self.figure,
                "min": min(self.values, default=None), "max": max(self.values, default=None),
                "n": len(self.values), "dropped": self.dropped, "verdict": self.verdict,
                "note": self.note, "problem": self.problem, "values": self.values}


def of_reads(line, samples):
    """The result of a line of cells; `samples` by cell."""
    of = samples[line.of]
    dropped = len(of) - len(good(of))
    if line.to is None:
        values = [getattr(sample, line.figure) for sample in good(of)]
        note = (f"reader {statistics.median(s.reader_cpu / s.bytes * 1e9 for s in good(of)):.3f} + "
                f"daemon {statistics.median(s.daemon_cpu / s.bytes * 1e9 for s in good(of)):.3f}"
                if values else "")
        return Result(line, values, dropped, note, "" if values else "every sample was noisy")
    to = samples[line.to]
    dropped += len(to) - len(good(to))
    other = {sample.round: sample for sample in good(to)}
    values = [getattr(sample, line.figure) / getattr(other[sample.round], line.figure)
              for sample in good(of) if sample.round in other]
    unit = "GB/s" if line.figure == "gbs" else "µs"
    figures = [statistics.median(getattr(sample, line.figure) for sample in good(taken))
               for taken in (of, to) if good(taken)]
    note = " ÷ ".join(f"{figure:.2f}" if unit == "GB/s" else f"{figure:.0f}" for figure in figures)
    return Result(line, values, dropped, f"{note} {unit}" if len(figures) == 2 else "",
                  "" if values else "no round without a noisy sample")


def number(value):
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(result):
    if not result.values:
        return ""
    text = number(result.figure)
    if len(result.values) > 1:
        text += f" [{number(min(result.values))} … {number(max(result.values))}]"
    return f"{text} {result.line.unit}".rstrip()
