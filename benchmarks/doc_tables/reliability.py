"""What was done to stored files, and what came of it: docs/reliability.md."""

from __future__ import annotations

from .layout import Results, count, lay_out


def reliability(results: Results) -> str:
    """A row for each script; failing calls have two."""
    scripts = ("faults", "fuzz", "hostile", "full_disk", "failing_calls", "failing_calls", "kills")
    faults, fuzz, hostile, disk, calls, _, killed = (results.result(name) for name in scripts)
    found, inputs, cases, points = faults["rows"]["outcomes"], fuzz["totals"], hostile["totals"], disk["totals"]
    remedies, failed, chains = faults["rows"]["remedies"], calls["totals"], killed["rows"]
    rows = [
        (
            f"one file harmed, of {count(faults['rows']['kinds'])} kinds, and a verb called that reads it",
            count(faults["rows"]["n_faults"]),
            f"{count(found.get('noticed', 0))} noticed, {count(found.get('harmless', 0))} without effect, {count(found.get('silent', 0))} silent, "
            f"{count(found.get('uncaught', 0))} uncaught; {count(remedies['worked'])} of {count(remedies['tried'])} remedies that messages name were tried and help",
        ),
        (
            f"a changed input given to one of {count(len(fuzz['rows']))} readers",
            count(inputs["inputs"]),
            f"{count(inputs['refused'])} refused in one line, {count(inputs['valid'])} still valid, {count(inputs['uncaught'])} uncaught",
        ),
        (
            "a stranger's run, model or file opened",
            count(cases["cases"]),
            f"{count(cases['executed'])} ran code, {count(cases['written_outside'])} wrote outside, {count(cases['reached'])} reached for the network, "
            f"{count(cases['hung'])} took more than 5 seconds, {count(cases['uncaught'])} uncaught",
        ),
        (
            "a disk that is full at a random byte of `probe`, `fit`, `search`, `apply`, `evaluate`",
            count(points["points"]),
            f"{count(points['failed_in_one_line'])} said so in one line, {count(points['nothing_lost'])} lost nothing, "
            f"{count(points['same_in_the_end'])} came to the same files once there was space",
        ),
        (
            "a random call that writes, flushes, closes or renames a file fails (EIO)",
            count(failed["points"]),
            f"{count(failed['said'])} said so in one line, {count(failed['not_needed'])} did not need it, {count(failed['nothing_lost'])} lost nothing, "
            f"{count(failed['same_in_the_end'])} came to the same files when run again",
        ),
        (
            "the clock jumps by up to a year, either way, in the middle of a verb",
            count(failed["jumps"]),
            f"{count(failed['jumps_without_effect'])} without effect",
        ),
        (
            f"the demo and its workers killed (SIGKILL) at random moments, and begun again, in {count(len(chains))} chains",
            count(sum(chain["kills"] for chain in chains)),
            f"all went on; of {count(sum(chain['files'] for chain in chains))} files in the end {count(sum(len(chain['different']) for chain in chains))} "
            f"differed from those of a demo that nobody killed; missing: {count(sum(len(chain['missing']) for chain in chains))}, "
            f"left over: {count(sum(len(chain['strays']) + len(chain['others']) for chain in chains))}",
        ),
    ]
    return lay_out(
        ["what is done", "times", "what came of it", "script"], [(*row, f"`{name}.py`") for row, name in zip(rows, scripts, strict=True)]
    )


TABLES = (reliability,)
