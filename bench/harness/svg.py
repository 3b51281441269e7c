"""Bar charts as SVG, readable in light and dark; no dependencies."""

import dataclasses
import html
import math
import typing

LABEL, PLOT, VALUE = 210, 420, 170  # widths
BAR, GAP, GROUP_GAP, TOP, BOTTOM = 16, 6, 30, 52, 40

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-weight: 600; font-size: 15px }
  .group { font-weight: 600 }
  .note { font-size: 11px; fill: #57606a }
  .grid { stroke: #d0d7de }
  .spread { stroke: #24292f; stroke-width: 1.5 }
  .goal { stroke: #cf222e; stroke-width: 2; stroke-dasharray: 5 3 }
  .goal-text { fill: #cf222e; font-size: 11px }
  .ours { fill: #2da44e } .other { fill: #8c959f } .missed { fill: #d4a72c }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .note { fill: #9198a1 } .grid { stroke: #3d444d }
    .spread { stroke: #e6edf3 } .goal { stroke: #ff7b72 } .goal-text { fill: #ff7b72 }
    .ours { fill: #3fb950 } .other { fill: #6e7681 } .missed { fill: #d29922 }
  }
"""


@dataclasses.dataclass
class Bar:
    label: str
    value: float
    low: float
    high: float
    kind: str  # "ours", "other" or "missed"
    text: str = ""  # beside the bar; else the value
    goal: typing.Optional[float] = None  # a mark on this bar


@dataclasses.dataclass
class Group:
    label: str
    bars: typing.List[Bar]


def nice_step(top):
    """A round number of which four to ten reach `top`."""
    step = 10 ** math.floor(math.log10(top / 4))
    return next(step * factor for factor in (1, 2, 2.5, 5, 10) if top / (step * factor) <= 6)


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def bar_chart(title, unit, groups, line=None, line_text="", note="", limit=None):
    """The text of an SVG. `line`: a goal across all bars; `limit`: where the axis ends at last."""
    bars = [bar for group in groups for bar in group.bars]
    top = max([bar.high for bar in bars] + [bar.goal or 0 for bar in bars] + [line or 0]) * 1.02 or 1
    if limit:
        top = min(top, limit)
    height = TOP + BOTTOM + sum(
        (GROUP_GAP if group.label else GAP) + len(group.bars) * (BAR + GAP) for group in groups)
    width = LABEL + PLOT + VALUE

    def x_of(value):
        return LABEL + min(value / top, 1) * PLOT

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
             f'width="{width}" height="{height}" role="img" aria-label="{html.escape(title)}">',
             f"<style>{STYLE}</style>", _text(12, 24, title, "title")]
    bottom = height - BOTTOM + 6
    step = nice_step(top)
    for i in range(int(top / step) + 1):
        x = x_of(i * step)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP - 14}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 14, number(i * step), "note", "middle"))
    parts.append(_text(LABEL + PLOT + 12, bottom + 14, unit, "note"))
    y = TOP - 12
    for group in groups:
        y += GROUP_GAP if group.label else GAP
        if group.label:
            parts.append(_text(12, y - 4, group.label, "group"))
        for bar in group.bars:
            parts += _bar(bar, y, x_of)
            y += BAR + GAP
    if line is not None:
        x = x_of(line)
        parts.append(f'<line class="goal" x1="{x:.1f}" y1="{TOP - 14}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, TOP - 18, line_text or f"goal {number(line)}", "goal-text", "middle"))
    if note:
        parts.append(_text(12, height - 6, note, "note"))
    return "\n".join(parts + ["</svg>", ""])


def _bar(bar, y, x_of):
    middle = y + BAR / 2
    yield _text(LABEL - 10, middle + 4, bar.label, "", "end")
    yield (f'<rect class="{bar.kind}" x="{LABEL}" y="{y}" width="{x_of(bar.value) - LABEL:.1f}" '
           f'height="{BAR}" rx="2"/>')
    if bar.high > bar.low:
        low, high = x_of(bar.low), x_of(bar.high)
        yield (f'<path class="spread" fill="none" d="M{low:.1f} {middle - 4}v8m0 -4H{high:.1f}'
               f'm0 -4v8"/>')
    if bar.goal is not None:
        x = x_of(bar.goal)
        yield f'<line class="goal" x1="{x:.1f}" y1="{y - 3}" x2="{x:.1f}" y2="{y + BAR + 3}"/>'
    yield _text(LABEL + PLOT + 12, middle + 4, bar.text or number(bar.value))


def _text(x, y, text, kind="", anchor="start"):
    attributes = (f' class="{kind}"' if kind else "") + (
        f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{html.escape(text)}</text>'
