"""`python -m fuzz TARGET …`, in the folder `tests`: the core's decoders on inputs that libFuzzer makes.

libFuzzer starts from the corpus of the tests and keeps each input that reaches code that no other input
reaches. What has to hold for every input is in `streams/core/fuzz/src/lib.rs`. The contract's decoder also
reads all records that are kept, and has to agree with the core.

An input that fails becomes a case of a test, with the fix: a record in the list of
`test_every_form_of_an_object` (contract/test_core_reader.py), a log or a row in the lists of those that are
refused (unit/test_tables.py), a batch one of unit/test_batches.py.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from hashlib import sha1
from pathlib import Path

import click
from unit.test_batches import told

from callfunnel.agents.choice import NotBuilt, sums_for, tables_for
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.schemas.events import TYPES
from callfunnel.streams.by_definition import DefinedTables
from callfunnel.streams.engine import Partition
from callfunnel.streams.log import OWN
from contract import test_core_reader as reader
from contract.batches import assembled, zstd
from contract.batches import record as made_record
from contract.records import ACCEPTED, FIELDS, REJECTED
from deploy.compile import CORE, cargo, target
from faults import corpus

CRATE = CORE / "fuzz"
MOST_BYTES = 4_096
COVERAGE = (
    "--cfg=fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 "
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table "
    "-Cllvm-args=-sanitizer-coverage-trace-compares"
)
"""The flags of cargo-fuzz without a sanitizer, for which the stable compiler is enough."""


def records() -> Iterator[bytes]:
    yield from (file.read_bytes() for file in (*ACCEPTED, *REJECTED))
    yield from (case.value for case in corpus.cases(reader.NOON_MS) if case.value)
    yield from (value for value, _ in corpus.mutations(7, 2_000, reader.NOON_MS))
    for kind in TYPES:
        yield from (reader.spelled(kind, field, b'"x"') for field in FIELDS)
    for field in ("occurred_at", "talk_seconds", "hangup_by", "campaign"):
        yield from (reader.spelled("call_ended", field, value) for value in reader.SPELLINGS)


def tables() -> Iterator[DefinedTables]:
    """Tables of few events and of many."""
    values = [value for value in records() if len(value) <= MOST_BYTES]
    for size in (1, 10, 1_000):
        for start in range(0, len(values), size):
            state = Partition(0, 1, reader.FOLD, Decoder(Limits(clock="event")), DefinedTables)
            batch = values[start : start + size]
            state.apply(batch, [None] * len(batch), [reader.NOON_MS] * len(batch), len(batch))
            yield state.tables


def logs() -> Iterator[bytes]:
    yield from (log for each in tables() for log in each.logs().values())


def rows() -> Iterator[bytes]:
    for each in tables():
        yield from (struct.pack("<H", len(key)) + key + value for key, value in each.records())


def batches() -> Iterator[bytes]:
    """What is behind the head of a record batch, and before it how many records it is said to be."""
    for each in tables():
        made = [made_record(n, *row) for n, row in enumerate(each.records()[:20])]
        yield bytes((len(made),)) + b"".join(made)
        yield bytes((len(made),)) + zstd(b"".join(made))
    yield b"\2" + made_record(9, None, b"") + made_record(20, b"k", None, [(b"h", None)])


SEEDS = {"record": records, "log": logs, "row": rows, "batch": batches}


def words() -> str:
    """A dictionary for libFuzzer, which does not see what a text is compared with."""
    choices = {choice for own in OWN.values() for field in own for choice in field.choices}
    return "\n".join(json.dumps(f'"{word}"') for word in sorted({*FIELDS, *TYPES, *choices}))


def build() -> Path:
    """The folder of the programs."""
    (host,) = re.findall(r"^host: (\S+)", cargo("-vV", capture_output=True, text=True).stdout, re.MULTILINE)
    arguments = ("build", "--release", "--locked", "--target", host)
    # With --target, the flags are not those of build scripts, which could not be linked with them.
    if cargo(*arguments, crate=CRATE, env={**os.environ, "RUSTFLAGS": COVERAGE}).returncode:
        raise SystemExit("not built: cargo failed, see above")
    return target() / host / "release"


def fuzz(program: Path, folder: Path, seeds: Iterable[bytes], seconds: int) -> str:
    """Runs a target and returns its figures. Raises `SystemExit` with an input that fails."""
    shutil.rmtree(folder / "seeds", ignore_errors=True)
    for name in ("seeds", "kept", "finds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        if len(seed) <= MOST_BYTES:
            (folder / "seeds" / sha1(seed).hexdigest()).write_bytes(seed)
    (folder / "words").write_text(words())
    options = {
        "max_total_time": seconds,
        "max_len": MOST_BYTES,
        "timeout": 10,  # of one input, which takes microseconds
        "dict": folder / "words",
        "artifact_prefix": f"{folder / 'finds'}/",
        "print_final_stats": 1,
    }
    command = [program, *(f"-{name}={value}" for name, value in options.items()), "kept", "seeds"]
    run = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True, errors="replace")
    if run.returncode:
        raise SystemExit(f"{run.stderr[-4_000:]}\n{program.name}: an input fails, see above")
    (executions,) = re.findall(r"number_of_executed_units: (\d+)", run.stderr)
    edges, inputs = re.findall(r"DONE +cov: (\d+) .*corp: (\d+)/", run.stderr)[-1]
    return f"{int(executions):,} executions, {int(edges):,} edges, {int(inputs):,} inputs, none fails"


def compare_batches(inputs: Iterable[bytes]) -> str:
    """Compares the ways in which a changelog is read. Raises `SystemExit` with those that differ."""
    count, kind, other = 0, sums_for("core").records_type, []
    for bytes_ in inputs:
        if bytes_:
            count += 1
            how = {"at": 9, "limit": 100, "aborted": ()}
            batch = [assembled(bytes_[1:], bytes_[0], first=7, last=262, codec=codec) for codec in (0, 4)]
            if any(told(kind, [one], **how) != told(None, [one], **how) for one in batch):
                other.append(bytes_)
    if other:
        some = "\n".join(map(repr, other[:20]))
        raise SystemExit(f"{len(other):,} batches are not read as they are without the core:\n{some}")
    return f"{count:,} batches are read as they are without the core"


def compare(inputs: Iterable[bytes]) -> str:
    """Compares what the core and the decoder make of records. Raises `SystemExit` with those that differ."""
    count = by_core = 0
    core, other = tables_for("core"), []
    for value in inputs:
        count += 1
        try:
            by_core += not reader.asked_about(core, [value], clock="event")
        except Exception:  # of either of them, or because they differ
            other.append(value)
    if other:
        some = "\n".join(map(repr, other[:20]))
        raise SystemExit(f"The core and the decoder disagree about {len(other):,} records:\n{some}")
    return (
        f"the core and the decoder agree about {count:,} records; the core reads {by_core:,} of them itself"
    )


@click.command(help=__doc__)
@click.argument("targets", nargs=-1, type=click.Choice(list(SEEDS)))
@click.option("--seconds", type=click.IntRange(1), default=60, show_default=True, help="Of each target.")
def main(targets: tuple[str, ...], seconds: int) -> None:
    programs = build()
    click.echo(f"Fuzzing each target for {seconds} s …", err=True)
    for name in targets or SEEDS:
        folder = target() / "fuzz" / name
        print(f"{name}: {fuzz(programs / name, folder, SEEDS[name](), seconds)}", flush=True)
        if judge := {"record": compare, "batch": compare_batches}.get(name):
            files = (file for kind in ("seeds", "kept") for file in sorted((folder / kind).iterdir()))
            print(f"{name}: {judge(file.read_bytes() for file in files)}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except NotBuilt as error:
        sys.exit(str(error))
