"""The tables of docs/which-networks.md, from the raw results of `network_sweep.py`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from generated import filled

Row = Mapping[str, Any]
RESULTS = ("verified", "analyzed", "not verified", "disagrees", "refused", "stopped", "failed")
SLOWEST = 10


def updated(text: str, rows: Iterable[Row]) -> str:
    """Return the text of the page with tables of these results."""
    return filled(text, [tables(rows)])


def tables(rows: Iterable[Row]) -> str:
    rows = list(rows)
    parts = [
        _counts(rows),
        _listed(rows, "disagrees", "Disagreements", "None of the networks."),
        _grouped(rows),
        _listed(rows, "stopped", "Stopped in the analysis", ""),
        _listed(rows, "not verified", "Analyzed, but not verified", ""),
        _slowest(rows),
        _other_measures(rows),
        _versions(rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(head: Iterable[str], lines: Iterable[Iterable[Any]], numbers: int = 0) -> str:
    head = list(head)
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, rule, *lines))


def _counts(rows: list[Row]) -> str:
    """Networks that a library itself cannot build or run are not counted."""
    used = [result for result in RESULTS if any(row["result"] == result for row in rows)]
    used = [result for result in used if result != "failed"]
    lines = []
    for library in dict.fromkeys(row["library"] for row in rows):
        by_result = Counter(row["result"] for row in rows if row["library"] == library)
        total = sum(by_result[result] for result in used)
        lines.append([library, total, *(by_result[result] for result in used)])
    if not lines:
        return ""
    lines.append(["**all**", *(sum(line[i] for line in lines) for i in range(1, 2 + len(used)))])
    names = {"analyzed": "analyzed, not yet verified"}
    head = ["library", "networks", *(names.get(result, result) for result in used)]
    return _table(head, lines, 1 + len(used))


def reason(row: Row) -> str:
    """Return the cause of a refusal, in few words, from the error message."""
    error = row["error"]
    if match := re.search(r"no receptive-field rule for the operation (\S+)", error):
        return f"no rule for `{match[1].removesuffix('.default')}`"
    if match := re.search(r"cannot follow the operation (\S+)", error):
        return f"`{match[1].removesuffix('.default')}` cannot be followed"
    if "computation that is not visible" in error:
        return "values are computed out of sight, such as in another thread"
    if match := re.search(r"(\S+) extracts values from a tensor", error):
        return f"values leave the tensors in `{match[1].rpartition(': ')[2]}`"
    if "stopped" in error:
        return str(error)
    if "memory" in error or error.startswith("MemoryError"):
        return "position sets need too much memory"
    text = error.partition(": ")[2].partition(". ")[0]
    return f"{text[:150].lower()[:1]}{text[1:150]}".replace("|", "/").replace("`", "'")


def _grouped(rows: list[Row]) -> str:
    refused = [row for row in rows if row["result"] == "refused"]
    if not refused:
        return ""
    groups: dict[str, list[str]] = {}
    for row in refused:
        groups.setdefault(reason(row), []).append(f"{row['name']} ({row['library']})")
    lines = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    table = _table(["reason", "networks"], [[cause, ", ".join(names)] for cause, names in lines])
    return f"## Refused\n\n{table}"


def _listed(rows: list[Row], result: str, title: str, none: str) -> str:
    found = [row for row in rows if row["result"] == result]
    if not found:
        return none and f"## {title}\n\n{none}"
    lines = [[row["name"], row["library"], reason(row)] for row in found]
    return f"## {title}\n\n{_table(['network', 'library', 'reason'], lines)}"


def _slowest(rows: list[Row]) -> str:
    timed = sorted(
        (row for row in rows if "analysis_s" in row), key=lambda row: -row["analysis_s"]
    )[:SLOWEST]
    lines = [
        [
            row["name"],
            row["library"],
            " x ".join(map(str, row["input_size"][0])),
            row["layers"],
            f"{row['analysis_s']:.1f}",
            row["analysis_mb"],
        ]
        for row in timed
    ]
    head = ["network", "library", "input", "layers", "CPU seconds", "memory in MB"]
    return f"## The slowest\n\n{_table(head, lines, 3)}" if lines else ""


def _other_measures(rows: list[Row]) -> str:
    compared = [row for row in rows if "other_at_checked_size" in row]
    other = [row for row in compared if row["other_at_checked_size"]]
    if not compared:
        return ""
    text = (
        f"## Two input sizes\n\nFor {len(compared)} networks, sizes, jumps and paddings of all "
        "layers that do not depend on the size of the map were also compared between the default "
        f"and the verified input size. They are equal in {len(compared) - len(other)}."
    )
    if not other:
        return text
    lines = [
        [row["name"], row["library"], ", ".join(f"`{n}`" for n in row["other_at_checked_size"])]
        for row in other
    ]
    return f"{text}\n\n{_table(['network', 'library', 'first layers that differ'], lines)}"


def _versions(rows: list[Row]) -> str:
    every: dict[str, set[str]] = {}
    for row in rows:
        for name, version in row["versions"].items():
            every.setdefault(name, set()).add(version)
    used = ", ".join(f"{name} {'/'.join(sorted(found))}" for name, found in sorted(every.items()))
    machines = ", ".join(sorted({row["hardware"]["device"] for row in rows}))
    return f"One thread of {machines}; {used}." if rows else ""
