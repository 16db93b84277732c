"""Sessions: histories on disk, tokens and limits."""

from __future__ import annotations

import numpy as np
import pytest

from demo.inputs import an_edit, picture
from fp_lightning.demo.session import Session, Sessions
from fp_lightning.errors import InputError
from fp_lightning.media.edits import read_edit


def test_a_history_is_a_tree_on_disk(tmp_path):
    session = Session("t", tmp_path)
    photo = picture(40, 30)
    root = session.add_photo(photo, "photo", {"strokes": []})
    child = session.add_edit(picture(40, 30, 1), an_edit(photo), root.key, "seed 0")
    assert (session.base, session.shown) == (root.key, child.key) and child.parent == root.key
    assert np.array_equal(np.array(child.open()), np.array(picture(40, 30, 1)))
    assert read_edit(child.edit).points == [[5, 5, 20, 20]] and child.size == (30, 40)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["edit-2.edit.json", "edit-2.png", "photo-1.png"]
    with pytest.raises(InputError, match="no longer in the history"):
        session.node("../../etc/passwd")


def test_a_full_history_removes_the_oldest_image_without_edits(tmp_path, monkeypatch):
    monkeypatch.setattr("fp_lightning.demo.session.MOST_NODES", 5)
    session = Session("t", tmp_path)
    photo = picture(20, 20)
    root = session.add_photo(photo, "photo").key
    first = session.add_edit(photo, an_edit(photo), root, "on the canvas").key
    session.base = first
    for number in range(8):
        session.add_edit(photo, an_edit(photo), root, f"edit {number}")
    assert len(session.nodes) == 5 and {root, first} <= session.nodes.keys()
    assert len(list(tmp_path.glob("*.png"))) == 5 and session.shown in session.nodes


def test_a_session_is_found_by_its_token_alone_and_expires(tmp_path):
    sessions = Sessions(tmp_path, hours=1)
    mine, yours = sessions.new(), sessions.new()
    mine.add_photo(picture(20, 20), "mine")
    assert sessions.open(mine.token) is mine and mine.token != yours.token
    for wrong in (None, "", mine.token[:-1], 3, ["a"], {"a": 1}):
        assert sessions.find(wrong) is None
        with pytest.raises(InputError, match="has expired; reload the page"):
            sessions.open(wrong)
    mine.used -= 3601
    assert mine.folder.exists()
    sessions.new()
    assert sessions.find(mine.token) is None and not mine.folder.exists() and sessions.find(yours.token) is yours


def test_the_number_of_sessions_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("fp_lightning.demo.session.MOST_SESSIONS", 3)
    sessions = Sessions(tmp_path)
    tokens = [sessions.new().token for _ in range(5)]
    assert [sessions.find(token) is not None for token in tokens] == [False, False, True, True, True]
