"""Files and folders are whole or absent, whatever fails and whenever the process dies."""

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from hasten.core import files


def write(folder: Path, text: str) -> None:
    (folder / "weights").mkdir()
    (folder / "weights" / "a.bin").write_bytes(text.encode() * 50)
    (folder / "b.txt").write_text(text)


def build(final: Path, text: str) -> None:
    with files.publish(final, {"text": text}) as folder:
        write(folder, text)


def state_of(final: Path) -> str | None:
    """The text that an undamaged folder was built from, or None where there is no folder."""
    if not final.exists():
        return None
    assert files.damage(final) is None
    text = (final / "b.txt").read_text()
    assert (final / "weights" / "a.bin").read_bytes() == text.encode() * 50
    return text


def calls_of(file_calls, work) -> int:
    """How many calls that change the file system `work` makes."""
    seen = []
    with file_calls(seen.append):
        work()
    return len(seen)


@pytest.mark.parametrize("before", [None, "old"])
def test_a_process_killed_at_any_call_leaves_the_old_or_the_new(tmp_path, file_calls, in_child, before):
    calls = calls_of(file_calls, lambda: build(tmp_path / "probe" / "f", "new"))
    outcomes = set()
    for fatal in range(1, calls + 12):  # replacing a folder takes a few calls more than making one
        final = tmp_path / str(fatal) / "f"
        if before:
            build(final, before)

        def killed(final=final, fatal=fatal):
            with file_calls(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == fatal else None):
                build(final, "new")

        code = in_child(killed)
        files.sweep(final.parent) if final.parent.exists() else None
        assert state_of(final) in ({before, "new"} if code else {"new"})
        left = set(final.parent.iterdir()) if final.parent.exists() else set()
        assert left <= {final}, "sweep removes what the dead process left"
        outcomes.add((code, state_of(final)))
    assert (-signal.SIGKILL, before) in outcomes
    assert (-signal.SIGKILL, "new") in outcomes
    assert (0, "new") in outcomes, "the loop reached past the last call"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_failure_at_any_call_leaves_one_whole_folder(tmp_path, file_calls, code, lasting):
    failures = 0
    for faulty in range(1, 30):
        final = tmp_path / str(faulty) / "f"
        build(final, "old")

        def fail(n, faulty=faulty):
            if faulty <= n < faulty + (3 if lasting else 1):
                raise OSError(code, os.strerror(code))

        try:
            with file_calls(fail):
                build(final, "new")
        except OSError as error:
            failures += 1
            assert error.errno == code
            assert lasting or set(final.parent.iterdir()) == {final}, "nothing temporary stays"
        files.sweep(final.parent)
        assert state_of(final) in {"old", "new"}
        assert set(final.parent.iterdir()) == {final}
    assert failures > 10


def test_a_block_that_raises_changes_nothing(tmp_path):
    build(tmp_path / "f", "old")

    def interrupted():
        with files.publish(tmp_path / "f") as folder:
            write(folder, "new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert state_of(tmp_path / "f") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("limit", [0, 1, 2, 57, 149, 150, 151, 300, 600])
def test_a_file_that_may_not_grow_past_a_limit_fails_with_the_kernels_word(tmp_path, in_child, limit):
    build(tmp_path / "f", "old")

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match="File too large"):
            build(tmp_path / "f", "new" * 100)

    assert in_child(limited) == 0
    assert state_of(tmp_path / "f") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_every_flipped_byte_is_found(tmp_path):
    build(tmp_path / "f", "some text")
    dice = random.Random(0)
    for path in [*files.contents(tmp_path / "f"), tmp_path / "f" / files.MANIFEST]:
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << dice.randrange(8))]) + whole[at + 1 :])
            assert files.damage(tmp_path / "f"), f"{path.name}, byte {at}"
        path.write_bytes(whole)
    assert files.damage(tmp_path / "f") is None


def test_every_truncation_is_found(tmp_path):
    build(tmp_path / "f", "some text")
    for path in [*files.contents(tmp_path / "f"), tmp_path / "f" / files.MANIFEST]:
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            assert files.damage(tmp_path / "f"), f"{path.name} cut to {size} bytes"
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: (f / "b.txt").unlink(), "b.txt is missing"),
        (lambda f: (f / "c.txt").write_text(""), "c.txt is not in the manifest"),
        (lambda f: (f / "b.txt").write_text("xx"), "b.txt has 2 bytes instead of 3"),
        (lambda f: (f / "b.txt").write_text("dlo"), "b.txt does not match the digest in manifest.json"),
        (lambda f: (f / files.MANIFEST).unlink(), "manifest.json is missing or unreadable"),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_damage_names_the_file_and_what_is_wrong_with_it(tmp_path, spoil, message):
    build(tmp_path / "f", "old")
    spoil(tmp_path / "f")
    assert files.damage(tmp_path / "f") == message


def test_two_files_of_equal_size_that_changed_places_are_found(tmp_path):
    with files.publish(tmp_path / "f") as folder:
        (folder / "a").write_text("1")
        (folder / "b").write_text("2")
    os.rename(tmp_path / "f" / "a", tmp_path / "f" / "c")
    os.rename(tmp_path / "f" / "b", tmp_path / "f" / "a")
    os.rename(tmp_path / "f" / "c", tmp_path / "f" / "b")
    assert files.damage(tmp_path / "f") == "a does not match the digest in manifest.json"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(note=json_values, recorded=json_values)
def test_a_forged_manifest_is_damage_and_never_a_crash(tmp_path_factory, note, recorded):
    folder = tmp_path_factory.mktemp("forged")
    body = {"note": note, "files": recorded}
    try:
        text = (
            json.dumps({**body, "fingerprint": files.fingerprint(body)}, indent=2, ensure_ascii=False) + "\n"
        )
        (folder / files.MANIFEST).write_text(text, encoding="utf-8")
    except UnicodeEncodeError:
        return  # no file can hold this text
    if files.damage(folder) is None:
        assert recorded == {} and isinstance(note, dict)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "null", "{}", '{"note": {}, "files": {}}'])
def test_a_manifest_of_another_shape_is_unreadable(tmp_path, text):
    (tmp_path / files.MANIFEST).write_text(text)
    assert files.read_manifest(tmp_path) is None


def test_the_manifest_keeps_the_note(tmp_path):
    build(tmp_path / "f", "Grüße")
    assert files.read_manifest(tmp_path / "f")["note"] == {"text": "Grüße"}


def test_a_removed_folder_is_gone_at_once_whatever_interrupts_the_rest(tmp_path, file_calls, in_child):
    for fatal in range(2, 7):  # the first call is the rename
        folder = tmp_path / f"f{fatal}"
        build(folder, "old")

        def killed(folder=folder, fatal=fatal):
            with file_calls(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == fatal else None):
                files.remove_folder(folder)

        assert in_child(killed) == -signal.SIGKILL
        assert not folder.exists()
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_text_file_is_the_old_or_the_new_after_a_kill_at_any_call(tmp_path, file_calls, in_child):
    path = tmp_path / "state.json"
    for fatal in range(1, 8):
        files.write_json(path, {"step": 1})

        def killed(fatal=fatal):
            with file_calls(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == fatal else None):
                files.write_json(path, {"step": 2})

        code = in_child(killed)
        assert json.loads(path.read_text()) in ([{"step": 1}, {"step": 2}] if code else [{"step": 2}])
    assert code == 0, "the loop reached past the last call"
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, 1, files.CHUNK_BYTES - 1, files.CHUNK_BYTES, 2 * files.CHUNK_BYTES + 7])
def test_digests_of_a_file_are_those_of_its_bytes(tmp_path, size):
    data = random.Random(size).randbytes(size)
    (tmp_path / "f").write_bytes(data)
    assert files.digest(tmp_path / "f") == xxhash.xxh3_128_hexdigest(data)
    assert files.sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_equal_values_have_equal_fingerprints_whatever_the_order_of_their_keys():
    assert files.fingerprint({"a": 1, "b": [2]}) == files.fingerprint({"b": [2], "a": 1})
    assert files.fingerprint({"a": 1}) != files.fingerprint({"a": "1"})
