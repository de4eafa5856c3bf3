"""Records of many files: known files are not read again, and what they cost does not grow with their number."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_vqseg.core import json as json_files
from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.data import records
from nnunetv2_vqseg.data.records import find_out, read_record

KEYS = frozenset(["shape", "spacing"])


def geometry(case: str, files: list[str]) -> dict[str, list]:
    if case == "broken":
        raise DatasetError("broken cannot be read.")
    return {"shape": [1, 64, 64], "spacing": [999.0, 1.0, 1.0]}


def found(record: Path, cases: dict[str, list[str]], function: Callable = geometry) -> dict[str, dict]:
    return find_out(record, function, cases, (), KEYS, 0, "", show_progress=False)


def cases_of(folder: Path, number: int) -> dict[str, list[str]]:
    return {f"U{case:06d}": [str(folder / f"U{case:06d}_0000.png")] for case in range(number)}


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    written: list[Path] = []
    write = json_files.replace_pieces
    monkeypatch.setattr(json_files, "replace_pieces", lambda file, *rest: written.append(file) or write(file, *rest))
    return written


def test_many_files_are_recorded_in_one_write(tmp_path: Path, writes: list[Path]):
    record = tmp_path / "record.json"
    assert found(record, cases_of(tmp_path, 500))["U000007"]["shape"] == [1, 64, 64]
    assert len(read_record(record)) == 500
    assert writes == [record]


def test_a_long_search_is_recorded_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record, known = tmp_path / "record.json", []
    monkeypatch.setattr(records, "NowAndThen", lambda save: save)  # each time is time

    def look(case: str, files: list[str]) -> dict[str, list]:
        known.append(len(read_record(record)))
        return geometry(case, files)

    found(record, cases_of(tmp_path, 4), look)
    assert known == [0, 1, 2, 3]


def test_what_was_found_beside_a_broken_file_is_kept(tmp_path: Path):
    record, cases = tmp_path / "record.json", {**cases_of(tmp_path, 3), "broken": ["b.png"]}
    with pytest.raises(DatasetError, match="broken cannot be read"):
        found(record, cases)
    assert len(read_record(record)) == 3


def test_a_file_costs_less_than_a_kilobyte(tmp_path: Path):
    """At the most that is held at a time, on the way there and when the record is read again."""

    def peak(number: int) -> int:
        record, cases = tmp_path / f"record_{number}.json", cases_of(tmp_path, number)
        peaks = []
        for _ in range(2):
            tracemalloc.start()
            found(record, cases)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return max(peaks)

    assert (peak(3000) - peak(500)) / 2500 < 1000
