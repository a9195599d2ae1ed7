"""The command line in a bad world: whatever happens, two lines and an exit code of `harness.errors`, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trees
from commands import TINY, bench
from interpreter import PYTHON

from inpbench.harness import console, runner
from inpbench.harness.console import harmless
from inpbench.harness.records import RecordStore

RUN = ["run", "--methods", "raw_pixel", "--preset", "smoke", *TINY, "--display", "plain"]
MAIN = [*PYTHON, "-c", "import sys; sys.argv[0] = 'bench'; from inpbench.harness.cli import main; main()"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one record."""
    folder = tmp_path_factory.mktemp("results with a space")
    assert bench(*RUN, "--results", folder).code == 0
    return folder


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line typed into a shell, with `bench` in it; its exit status is bench's own, also in a pipe."""
    own = {**os.environ, **environment, "BENCH": " ".join(f"'{word}'" for word in MAIN).replace("'bench'", '"bench"')}
    script = f'set -o pipefail\nbench() {{ {sys.executable} {"-P" if "-P" in PYTHON else ""} -c "$MAIN" "$@"; }}\n{command}'
    own["MAIN"] = MAIN[-1]
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120, env=own, errors="backslashreplace"
    )


# --- what is typed --------------------------------------------------------------------------------------------------

NONSENSE: list[tuple[list[str], int, str]] = [
    (["--seeds", ""], 2, "names no number"),
    (["--seeds", "1e5"], 2, "whole numbers"),
    (["--seeds", "99999999999999999999"], 2, "2^32"),
    (["--snapshot-every", "nan"], 2, "takes seconds"),
    (["--snapshot-every", "-1"], 2, "--snapshot-every"),
    (["--eval-batch", "99999999999999999999"], 2, "--eval-batch"),
    (["--limit", "0"], 2, "--limit"),
    (["--device", "mps"], 2, "only cpu and cuda"),
    (["--device", ""], 2, "Unknown device"),
    (["--results", "~no_such_user_at_all/x"], 2, "home folder"),
    (["--set", "raw_pixel.input_size=9999999999999999999999"], 2, "expected a size"),
    (["--set", "raw_pixel.input_size"], 2, "NAME.KEY=VALUE"),
    (["--set", "synthetic.size=nan"], 2, "synthetic.size"),
    (["--categories", "../../etc"], 2, "no category"),
    (["--preset", "../x"], 2, "preset"),
    (["--setting", "\x1b[2J"], 2, "Unknown setting"),
    (["--checkpoint", "/dev/zero"], 3, "no weight file"),
    (["--maps-of", "worst,1,2", "--save-maps"], 2, "--maps-of"),
]


@pytest.mark.parametrize(
    ("more", "code", "words"), NONSENSE, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_nonsense_is_a_usage_error(more: list[str], code: int, words: str, tmp_path: Path) -> None:
    outcome = bench(*RUN, "--results", tmp_path, *more)
    assert outcome.code == code and words in " ".join(outcome.err.split()), outcome
    assert "Error: " in outcome.err and "Traceback" not in outcome.err and "\x1b" not in outcome.err
    assert not list(tmp_path.rglob("*.json"))


def test_a_range_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    changes = ["--set", "inp_former.target_layers=0-999999999999", "--dry-run"]
    outcome = bench("run", "--methods", "inp_former", "--encoder", "builtin", *TINY, *changes)
    assert outcome.code == 2 and "expected ints" in outcome.err


@pytest.mark.parametrize("dataset", ["folder", "visa", "real_iad", "elpv", "mnist", "inctrl_lists", "mvtec_ad"])
@pytest.mark.parametrize("root", ["/dev/zero", "file", "~no_such_user_at_all", "absent"])
def test_data_roots_that_are_none(dataset: str, root: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    given = root if root[0] in "/~" else tmp_path / root
    outcome = bench("run", "-m", "raw_pixel", "--dataset", dataset, "--data-root", given, "--results", tmp_path / "runs")
    assert outcome.code in (2, 3) and "Error: " in outcome.err and "Traceback" not in outcome.err, outcome.err


def test_a_hostile_list_through_the_command_line(tmp_path: Path) -> None:
    root = trees.visa_raw(tmp_path / "visa")
    table = root / "split_csv" / "1cls.csv"
    table.write_bytes(table.read_bytes().replace(b"candle/Data/Images/Normal/000.JPG", b"../../../../etc/passwd", 1))
    outcome = bench("run", "-m", "raw_pixel", "--dataset", "visa", "--data-root", root, "--results", tmp_path / "runs")
    assert outcome.code == 3 and "a path that leaves the data root" in outcome.err and "bench data verify visa" in outcome.err
    table.write_bytes(b"\xff\xfe\x00")
    outcome = bench("data", "verify", "visa", "--data-root", root)
    assert outcome.code == 3 and "cannot be read" in outcome.err and "Unpack" in outcome.err


def test_a_hostile_record_among_good_ones(results: Path) -> None:
    """It is named in a warning, the others are shown; its name cannot move the cursor."""
    folder = next(results.rglob("*.json")).parent
    bad = folder / "\x1b[2J.json"
    bad.write_text('{"schema": 1, "schema": 1}')
    try:
        outcome = bench("leaderboard", "--results", results)
        assert outcome.code == 0 and "raw_pixel" in outcome.out
        assert "stands there twice" in outcome.err and "\\x1b[2J.json" in outcome.err and "\x1b" not in outcome.err
    finally:
        bad.unlink()


def test_an_archive_or_a_target_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for verb in (
        ["data", "prepare", "sdd", "--from", tmp_path / "file", "--to", tmp_path / "out"],
        ["data", "prepare", "sdd", "--from", tmp_path, "--to", tmp_path / "file" / "x"],
        ["data", "download", "sdd", "--to", tmp_path / "file", "--accept-licence", "sdd"],
        ["predict", "0123456789ab", "--images", "/dev/zero", "--out", tmp_path / "out", "--results", tmp_path],
        ["report", "--results", tmp_path / "file", "--out", tmp_path / "r.html"],
        ["check", "--results", tmp_path / "file", "--baselines", tmp_path / "file"],
    ):
        outcome = bench(*verb)
        assert outcome.code in (1, 2, 3, 4) and "Error: " in outcome.err and "Traceback" not in outcome.err, outcome


def test_a_device_is_never_replaced_by_a_file(results: Path, tmp_path: Path) -> None:
    """The new file is renamed over the old one: with the rights of root that would turn a device into a file."""
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path(os.devnull)):
        outcome = bench("report", "--results", results, "--out", place)
        assert outcome.code == 1 and "a device or a pipe, not a file" in outcome.err
        assert not place.is_file()


# --- where it is typed ----------------------------------------------------------------------------------------------


def test_readers_and_places_that_are_not_there(results: Path, tmp_path: Path) -> None:
    """A broken pipe, a full stdout, closed streams, no home, a dumb terminal, no folder for temporary files: one shell each."""
    table = f"bench leaderboard --results '{results}'"
    cases = {
        f"{table} | head -1": (0, ""),
        f"{table} > /dev/full": (1, "No space left on device"),
        f"{table} <&- >&-": (0, ""),
        f"unset HOME; TERM=dumb TMPDIR=/nonexistent {table}": (0, ""),
        "bench": (2, ""),
        f"bench leaderboard --results '{results}/none'": (4, "No record"),
    }
    for command, (code, words) in cases.items():
        answer = shell(command)
        assert answer.returncode == code and words in answer.stderr, (command, answer)
        assert "Traceback" not in answer.stderr and "Exception ignored" not in answer.stderr, (command, answer.stderr)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_terminals_of_other_encodings(encoding: str, results: Path) -> None:
    for form in ("terminal", "json"):
        answer = shell(f"bench leaderboard -f {form} --results '{results}'", PYTHONIOENCODING=encoding)
        assert answer.returncode == 0 and "raw_pixel" in answer.stdout and not answer.stderr, answer
        assert form == "terminal" or json.loads(answer.stdout)


def test_what_an_encoding_lacks_is_written_as_json_writes_it() -> None:
    console.accept_any_text()
    text = "é☃\U0001f600\udcff"
    assert json.loads('"' + text.encode("ascii", "inpbench").decode() + '"') == text
    assert text.encode("utf-8", "inpbench").decode().endswith("\\udcff")


def test_control_characters_are_written_out() -> None:
    assert harmless("a\x1b[2J\r\x07\x9bb\tc\nd é") == "a\\x1b[2J\\x0d\\x07\\x9bb\tc\nd é"


def test_few_files_and_small_files(tmp_path: Path) -> None:
    answer = shell(f"ulimit -f 1; bench {' '.join(RUN)} --results '{tmp_path}'")
    assert answer.returncode == 1 and "File too large" in answer.stderr and "ulimit -f" in answer.stderr, answer
    assert "Traceback" not in answer.stderr and not RecordStore(tmp_path).all().warnings


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 1, "Too many open files"),
        (OSError(errno.EIO, "Input/output error", "/data/x"), 1, "/data/x: Input/output error"),
        (MemoryError(), 1, "The memory is full"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_what_no_module_foresaw(error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from inpbench.harness import records

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(records.RecordStore, "all", fail)
    outcome = bench("leaderboard")
    assert outcome.code == code and words in outcome.err and "Traceback" not in outcome.err
    assert len(outcome.err.strip().splitlines()) == 2


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the machine's errors are two lines: a bug must be found."""
    from inpbench.harness import records

    monkeypatch.setattr(records.RecordStore, "all", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        bench("leaderboard")


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "No space left on device", "x"), RuntimeError("a\nb\nc")])
def test_a_failed_cell_says_one_thing(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(runner, "evaluate_category", fail)
    outcome = bench(*RUN, "--results", tmp_path)
    assert outcome.code == 1 and "Traceback" not in outcome.err + outcome.out
    (record,) = RecordStore(tmp_path).all()
    assert record.status == "failed" and record.error is not None and "Traceback" in record.error["traceback"]
    expected = {"MemoryError": "the memory is full", "OSError": "No space left on device", "RuntimeError": "a"}
    assert record.error["message"].startswith(expected[type(error).__name__]) or "Cannot use x" in record.error["message"]
    assert "\nb" not in record.error["message"]


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["prepare", "fit", "evaluate_category", "save_model", "count_cost"])
def test_ctrl_c_at_each_phase(phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, phase, interrupt)
    outcome = bench(*RUN, "--results", tmp_path)
    assert outcome.code == 130 and "the same command goes on from there" in outcome.err and "Traceback" not in outcome.err
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.tmp")) and not RecordStore(tmp_path).all().warnings
    assert bench(*RUN, "--results", tmp_path).code == 0 and not list(tmp_path.rglob("*.work"))


def test_a_real_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    """A process on a terminal of its own, interrupted as the terminal does it: two lines, 130, and it goes on."""
    command = [*MAIN, "run", "-m", "inp_former", "--encoder", "builtin", "--preset", "smoke", *TINY]
    command += ["--set", "inp_former.steps=4000", "--results", str(tmp_path), "--display", "plain"]
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell starts background jobs without Ctrl-C
    )
    os.close(follower)
    said = b""
    while b"epoch" not in said and process.poll() is None:
        said += os.read(leader, 4096)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    with_end = said
    try:
        while chunk := os.read(leader, 4096):
            with_end += chunk
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    assert process.wait(60) == 130, with_end.decode(errors="replace")
    assert b"Interrupted." in with_end and b"Traceback" not in with_end
    (record,) = RecordStore(tmp_path).all()
    assert record.status == "started"
