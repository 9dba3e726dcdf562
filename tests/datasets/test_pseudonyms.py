"""Pseudonyms hold from run to run, and tell nothing to those who lack the key."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.datasets import pseudonyms
from pneumoscope.datasets.pseudonyms import KEY_FILE, Pseudonyms, compute_pseudonym, find_key_file
from pneumoscope.errors import UsageError


def test_a_patient_has_one_pseudonym_from_run_to_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "new" / "folder" / "key"
    with caplog.at_level(logging.INFO, "pneumoscope"):
        first = Pseudonyms(file).get("0815")
        again = Pseudonyms(file).get("0815")
    assert first == again
    assert re.fullmatch("[0-9a-f]{16}", str(first))
    assert [str(file) in message for message in caplog.messages] == [True]  # that there is a new key is said once
    assert Pseudonyms(file).get("0816") != first
    assert Pseudonyms(tmp_path / "another").get("0815") != first
    assert first != hashlib.sha256(b"0815").hexdigest()[:16]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_without_a_patient_there_is_no_key(tmp_path: Path) -> None:
    names = Pseudonyms(tmp_path / "key")
    assert (names.get(None), names.get("")) == (None, None)
    assert not (tmp_path / "key").exists()


def test_programs_that_start_at_once_share_a_key(tmp_path: Path) -> None:
    script = "from pneumoscope.datasets.pseudonyms import Pseudonyms; print(Pseudonyms().get('a'))"
    command, environment = [sys.executable, "-c", script], {**os.environ, KEY_FILE: str(tmp_path / "key")}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: Pseudonyms(tmp_path / "second").get("a"), range(64)))
    assert len(set(found)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "second"]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    assert Pseudonyms(tmp_path / "key").get("a") == Pseudonyms(tmp_path / "key").get("a")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", ["", "secret", "ab" * 31, "zz" * 32, "ab" * 2000])
def test_a_file_that_holds_no_key_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(UsageError, match=r"not a key|cannot be read") as caught:
        Pseudonyms(tmp_path / "key").get("a")
    assert str(tmp_path / "key") in str(caught.value)
    assert content == "" or content not in str(caught.value)
    assert (tmp_path / "key").read_text() == content


@pytest.mark.parametrize("place", ["file/key", "folder", "link"])
def test_a_key_that_cannot_be_made_says_what_to_do(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=rf"{KEY_FILE}.*`patient_ids=True`"):
        Pseudonyms(tmp_path / place).get("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]


def test_the_key_lies_in_the_users_data_folder_unless_a_variable_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "mine"))
    assert find_key_file() == tmp_path / "mine"
    monkeypatch.setenv(KEY_FILE, "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert find_key_file() == tmp_path / "pneumoscope" / "pseudonym.key"


@given(st.text(st.characters(exclude_categories=())), st.binary(min_size=32, max_size=32))
def test_any_text_has_a_pseudonym(patient: str, key: bytes) -> None:
    assert re.fullmatch("[0-9a-f]{16}", compute_pseudonym(key, patient))
    assert compute_pseudonym(key, patient) != compute_pseudonym(key, patient + "0")


def test_nothing_is_written_where_a_key_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Pseudonyms(tmp_path / "key").get("a")
    monkeypatch.setattr(pseudonyms, "_make_key", lambda _: pytest.fail("it makes another key"))
    assert Pseudonyms(tmp_path / "key").get("a") == first
