"""`fp-lightning doctor`: what this machine can do, and a self-test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from fp_lightning.cli.machine import Finding, findings
from fp_lightning.cli.parsing import make_parser
from fp_lightning.cli.selftest import Check, self_test
from fp_lightning.files import write_text


def doctor(arguments: list[str]) -> None:
    """Print the report. The exit status is 1 if the self-test fails."""
    parser = make_parser(
        "doctor", "Report what this machine can do, and run a self-test of at most a minute. Exit status 1 if it fails."
    )
    parser.add_argument("--no-self-test", action="store_true", help="only report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    options = parser.parse_args(arguments)
    found = findings()
    print(report(found), flush=True)
    checks = [] if options.no_self_test else self_test()
    if checks:
        print(outcome(checks))
    failed = [check.name for check in checks if not check.passed]
    if options.json:
        content = {"findings": [asdict(one) for one in found], "self_test": [asdict(check) for check in checks]}
        write_text(options.json, json.dumps(content | {"passed": not failed}, indent=2) + "\n")
    if failed:
        raise SystemExit(1)


def report(found: Sequence[Finding]) -> str:
    """Return the findings as plain text, a block for each group."""
    lines, width = [], max(len(one.name) for one in found)
    for group, members in groupby(found, key=lambda one: one.group):
        lines.append(group)
        for one in members:
            lines.append(f"  {one.name:<{width}}  {one.value}")
            if one.remedy:
                lines.append(f"  {'':<{width}}  → {one.remedy}")
    return "\n".join(lines)


def outcome(checks: Sequence[Check]) -> str:
    """Return the self-test as plain text."""
    rows = [f"  {'ok    ' if c.passed else 'FAILED'}  {c.name}: {c.text} ({c.seconds:.1f} s)" for c in checks]
    failed = sum(not check.passed for check in checks)
    result = f"self-test failed: {failed} of {len(checks)} parts" if failed else "self-test passed"
    return "\n".join(["self-test", *rows, "", result])
