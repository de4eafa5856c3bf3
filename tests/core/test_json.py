"""JSON of ours and of others."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.core.json import read_json, read_object, to_jsonable, write_entries, write_json


def test_json_has_null_for_what_is_not_a_number():
    value = {
        "a": math.nan,
        "b": np.float32(0.5),
        "c": [math.inf, np.int64(3), (True, None)],
        1: np.array([1.0, math.nan]),
    }
    assert to_jsonable(value) == {"a": None, "b": 0.5, "c": [None, 3, [True, None]], "1": [1.0, None]}


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (None, None, "cannot be read (No such file or directory); do this."),
        ("{", None, "is not valid JSON (Expecting property name"),
        ("[" * 100_000, None, "is not valid JSON ("),
        ("[]", dict, "does not hold a JSON object; do this."),
        ("{}", list, "does not hold a JSON list; do this."),
    ],
)
def test_what_cannot_be_used_is_told_with_the_remedy(tmp_path, content, kind, sentence):
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError) as stopped:
        read_json(file, "do this", kind)
    assert str(stopped.value).startswith(f"{file} {sentence}")
    assert read_object(file) == {}


def test_a_file_that_somebody_is_writing_is_read_when_it_is_whole(tmp_path, monkeypatch):
    """nnU-Net's `save_json` empties a file and fills it: another training that starts then sees half of it."""
    file = tmp_path / "splits_final.json"
    halves = iter(['[{"train": ["A"', '[{"train": ["A"], "val": ["B"]}]'])
    monkeypatch.setattr("time.sleep", lambda seconds: file.write_text(next(halves), encoding="utf-8"))
    file.touch()
    assert read_json(file, "delete it") == [{"train": ["A"], "val": ["B"]}]


def test_what_is_written_is_read_back(tmp_path):
    file = tmp_path / "new" / "a.json"
    write_json({"a": [1, math.nan], "path": tmp_path}, file)
    assert read_json(file, "", dict) == read_object(file) == {"a": [1, None], "path": str(tmp_path)}


@pytest.mark.parametrize("entries", [{}, {"a": {"b": [1, None]}}, {'"ä"': 1, "c": [2.5]}])
def test_entries_are_written_line_by_line(tmp_path, entries):
    file = tmp_path / "record.json"
    write_entries("{", entries, "}", file)
    assert read_json(file, "") == entries
    write_entries('{"version": 1, "cases": {', entries, "}}", file)
    assert read_json(file, "") == {"version": 1, "cases": entries}
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == (len(entries) + 2 if entries else 1)
