"""The report: one row per goal, from the records of all steps so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from verdict.steps import Record, Step

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "fails", "undecided", "not run"


@dataclass(frozen=True)
class Row:
    """One goal with its result. note: what limits the result."""

    goal: str
    measured: str
    interval: str
    verdict: str
    note: str = ""


def make_rows(plan: Sequence[Step], records: Sequence[Record]) -> list[Row]:
    """Return the rows of every step that has a goal."""
    return [row for step in plan if step.goal for row in _rows(step, [r for r in records if r["step"] == step.name])]


def _rows(step: Step, records: list[Record]) -> Iterator[Row]:
    end = next((record for record in records if record["kind"] == "end"), {"status": "running"})
    note = "" if end["status"] == "done" else ": ".join(filter(None, [end["status"], end.get("reason")]))
    note = "; ".join([*(record["reason"] for record in records if record["kind"] == "problem"), *filter(None, [note])])
    pairs = {(record["load"], record["way"]): record for record in records if record["kind"] == "pair"}
    tests = [record for record in records if record["kind"] == "test"]
    places = [record for record in records if record["kind"] == "place"]
    for (load, way), last in pairs.items():
        refused = "; ".join(next((place["refusals"] for place in places if place["load"] == load), ()))
        reasons = "; ".join(filter(None, [last.get("reason"), note, refused if way == "in memory" else ""]))
        interval = "" if last["low"] is None else f"{last['low']:.3f} to {last['high']:.3f}"
        measured = f"{last['ratio']:.3f} ({last['pair']} pairs)"
        yield Row(f"{step.goal}, {load}, {way}", measured, interval, last["verdict"], reasons)
    for place in places:
        if place["place"] is None:
            yield Row(f"{step.goal}, {place['load']}", "not measured", "", UNDECIDED, "; ".join(place["refusals"]))
    if tests or (not pairs and not any(place["place"] is None for place in places)):
        yield _test_row(step, records, tests, note)


def _test_row(step: Step, records: list[Record], tests: list[Record], note: str) -> Row:
    planned = next((record["count"] for record in records if record["kind"] == "tests"), 0)
    outcomes = Counter(test["outcome"] for test in tests)
    reasons = [f"{test['name']}: {test['reason'].splitlines()[-1]}" for test in tests if test["outcome"] == "failed"]
    reasons += sorted({test["reason"] for test in tests if test["outcome"] == "skipped"})
    note = "; ".join(filter(None, [*reasons, note]))
    if outcomes["failed"]:
        verdict = FAILS
    elif outcomes["passed"] and outcomes["passed"] == planned:
        verdict = HOLDS
    else:
        verdict = UNDECIDED if outcomes["passed"] else NOT_RUN
    return Row(step.goal, f"{outcomes['passed']} of {planned} tests passed" if planned else "", "", verdict, note)


def make_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, with the notes below it."""
    lines = ["| goal | measured | 95 % interval | verdict |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.goal} | {row.measured or '-'} | {row.interval or '-'} | {row.verdict} |" for row in rows]
    notes = [f"- {row.goal}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def describe(record: Record) -> str | None:
    """Return one line for a record as it comes, or None for those that need none."""
    name = record["step"]
    match record["kind"]:
        case "pair":
            interval = "" if record["low"] is None else f" ({record['low']:.3f} to {record['high']:.3f})"
            return (
                f"{name}: {record['load']:<8} {record['way']:<9} pair {record['pair']:>2}: "
                f"plain {record['tokens'] / record['plain_seconds']:>9,.0f} tokens/s, "
                f"{record['tokens'] / record['seconds']:>9,.0f}; ratio {record['pair_ratio']:.3f}; "
                f"so far {record['ratio']:.3f}{interval} {record['verdict']}"
            )
        case "disk":
            rate, free = f"{record['rate'] / 1e6:,.0f} MB/s", f"{record['free'] / 1e9:,.1f} GB"
            return f"{name}: {record['folder']} takes {rate}, {free} free"
        case "place":
            chosen = record["place"]["way"] if record["place"] else "not measured"
            refusals = "".join(f"; {reason}" for reason in record["refusals"])
            return f"{name}: {record['load']} needs {record['needed'] / 1e6:,.0f} MB/s: {chosen}{refusals}"
        case "machine":
            skip = ("step", "kind", "time")
            return f"{name}: " + ", ".join(f"{key} {value}" for key, value in record.items() if key not in skip)
        case "engine":
            return f"{name}: engine ({record['way']}) started in {record['seconds']:.0f} s"
        case "test" if record["outcome"] == "failed" or record["seconds"] >= 1:
            return f"{name}: {record['outcome']} {record['name']} ({record['seconds']:.0f} s)"
        case "end":
            return ": ".join(
                filter(None, [name, f"{record['status']} after {record['seconds']:.0f} s", record.get("reason")])
            )
        case "damaged":
            return f"a line of the results is damaged: {record['line']!r}"
    return None
