"""The table on the screen, the JSON file and results.md."""

import json

from harness.results import spread

HEAD = ("line", "median [min … max]", "n", "goal", "", "absolute figures")


def rows(results):
    for result in results:
        n = str(len(result.values)) + (f" (−{result.dropped})" if result.dropped else "")
        yield (result.line.title, spread(result) or "—", n if result.values else "",
               str(result.line.goal), result.verdict, result.note or result.problem)


def table(results):
    lines = [HEAD, *rows(results)]
    widths = [max(len(row[i]) for row in lines) for i in range(len(HEAD) - 1)]
    return "\n".join("  ".join(
        [cell.ljust(width) for cell, width in zip(row, widths)] + [row[-1].splitlines()[0] if row[-1] else ""]
    ).rstrip() for row in lines)


def markdown(results, document, charts):
    """results.md: the same table with what it was measured on."""
    machine, versions = document["machine"], document["machine"]["versions"]
    lines = [
        "<!-- Written by bench/run; do not edit. -->", "# Results", "",
        f"{document['date']}, `{document['command']}`: {machine['cores']} × {machine['cpu']}, "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, {machine['disk']}. "
        + ", ".join(str(version) for version in versions.values() if version) + ".", "",
        "A ratio is taken of two samples of one round. n is the number of rounds that were kept, "
        "(−n) the samples that were thrown away.", "",
        "| quantity | median [min … max] | n | goal | | absolute figures |",
        "|---|---|---|---|---|---|"]
    for row in rows(results):
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        cells[4] = f"**{cells[4]}**" if cells[4] != "met" else "met"
        lines.append("| " + " | ".join(cells) + " |")
    lines += [""] + [f"![{title}]({name})" for name, title in charts]
    return "\n".join(lines) + "\n"


def as_json(results, document, samples):
    def plain(sample):
        cell = sample.cell
        return {"stage": cell.stage, "source": cell.source, "mode": cell.mode,
                "readers": cell.readers, "round": sample.round, "bytes": sample.bytes,
                "seconds": sample.seconds, "reader_cpu": sample.reader_cpu,
                "daemon_cpu": round(sample.daemon_cpu, 6), "foreign": round(sample.foreign, 4),
                "p50": sample.p50, "p99": sample.p99, "dropped": sample.dropped}

    return json.dumps({**document, "lines": [result.as_json() for result in results],
                       "samples": [plain(sample) for taken in samples.values() for sample in taken]},
                      indent=1, ensure_ascii=False) + "\n"
