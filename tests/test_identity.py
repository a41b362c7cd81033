"""What makes two checkpoints the same, and that texts beside weights are those of the source."""

import json
import os
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from fake_model import byte_tokenizer_folder
from safetensors.numpy import load_file, save_file
from test_pack import write

import lapinfer.loading as loading
from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint import identity
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.errors import CheckpointError
from lapinfer.loading import load_model
from lapinfer.options import LoadOptions
from lapinfer.packing.copies import cached_folder
from lapinfer.text.language_model import from_model


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


@pytest.fixture
def large(monkeypatch):
    """Every file counts as large; the files that were read in full. They may be as new as they like."""
    read = []
    content_digest = identity.content_digest

    def reading(data, *progress):
        read.append(data.nbytes)
        return content_digest(data, *progress)

    monkeypatch.setattr(identity, "SMALL", 0)
    monkeypatch.setattr(identity, "TICK_NS", -(10**9))
    monkeypatch.setattr(identity, "content_digest", reading)
    return read


def identity_of(folder):
    return FolderCheckpoint(folder).contents.identity()


def change_in_place(path, keep_times=True):
    """One bit of the last tensor, written into the file; its size and, if they are restored, its times stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_same_content_is_the_same_checkpoint_wherever_it_lies(tmp_path):
    first = write(tmp_path / "model").contents.identity()
    shutil.copytree(tmp_path / "model", tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / FILE_NAME, (1, 1))
    assert identity_of(tmp_path / "elsewhere") == first
    (tmp_path / "elsewhere" / "chat_template.jinja").write_text("texts are read where they lie")
    assert identity_of(tmp_path / "elsewhere") == first


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("keep_times", [True, False])
def test_one_bit_makes_another_checkpoint_whatever_name_size_and_times_say(tmp_path, size, keep_times, request):
    if size == "large":
        request.getfixturevalue("large")
    checkpoint = write(tmp_path / "model")
    first = checkpoint.contents.identity()
    assert identity_of(tmp_path / "model") == first
    change_in_place(tmp_path / "model" / FILE_NAME, keep_times)
    assert identity_of(tmp_path / "model") != first


def test_two_models_of_one_name_size_and_time_have_two_copies(tmp_path):
    """As two downloads into folders of one name are, whose times were restored."""
    folders = [tmp_path / parent / "model" for parent in "ab"]
    for folder in folders:
        folder.parent.mkdir()
        write(folder)
    change_in_place(folders[1] / FILE_NAME)
    for folder in folders:
        for file in folder.iterdir():
            os.utime(file, (1_700_000_000, 1_700_000_000))
    first, second = (cached_folder(FolderCheckpoint(folder), "q4", tmp_path) for folder in folders)
    assert first != second
    assert first.name.startswith("model-q4-")


def test_shards_are_told_apart_by_their_content_and_their_index(tmp_path):
    save_file({"a": np.zeros((2, 2), np.float32)}, tmp_path / "one.safetensors")
    save_file({"b": np.zeros((2, 2), np.float32)}, tmp_path / "two.safetensors")
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    first = identity_of(tmp_path)
    save_file({"b": np.eye(2, dtype=np.float32)}, tmp_path / "two.safetensors")
    second = identity_of(tmp_path)
    (tmp_path / "config.json").write_text('{"rope_theta": 5}')
    assert len({first, second, identity_of(tmp_path)}) == 3


def test_a_large_file_is_read_once(tmp_path, large):
    size = (write(tmp_path / "model").path / FILE_NAME).stat().st_size
    first = identity_of(tmp_path / "model")
    assert identity_of(tmp_path / "model") == first
    assert large == [size]
    os.utime(tmp_path / "model" / FILE_NAME, (1, 1))  # its time of change is another one
    assert identity_of(tmp_path / "model") == first
    assert large == [size, size]
    (note,) = (tmp_path / "home" / "identities").iterdir()
    note.write_text("damaged")
    assert identity_of(tmp_path / "model") == first


@pytest.mark.skipif(os.name != "posix", reason="owners and modes")
@pytest.mark.parametrize("planted", ["file", "folder", "link", "home"])
def test_notes_that_others_could_have_written_are_not_believed(tmp_path, large, planted):
    write(tmp_path / "model")
    first = identity_of(tmp_path / "model")
    folder = tmp_path / "home" / "identities"
    (note,) = folder.iterdir()
    assert [oct(path.stat().st_mode & 0o777) for path in (folder, note)] == ["0o700", "0o600"]
    key, _, found = note.read_text().strip().partition(" ")
    note.write_text(f"{key} {'0' * len(found)}\n")
    assert identity_of(tmp_path / "model") != first  # so much depends on it
    if planted == "link":
        folder.rename(tmp_path / "theirs")
        folder.symlink_to(tmp_path / "theirs")
    elif planted == "file":
        note.chmod(0o666)
    else:
        (tmp_path / "home").chmod(0o777)
        if planted == "folder":
            folder.chmod(0o777)
    assert identity_of(tmp_path / "model") == first
    assert len(large) == 2


@pytest.mark.skipif(os.name != "posix", reason="owners and modes")
def test_copies_and_notes_are_made_for_this_user_alone(tmp_path, large):
    before = os.umask(0)
    try:
        load_model(write(tmp_path / "model").path, LoadOptions(quant="q8")).close()
    finally:
        os.umask(before)
    made = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "home").iterdir()}
    assert made.pop("packed") == "0o700"
    assert made.pop("identities") == "0o700"
    assert set(made.values()) <= {"0o700"}


def test_what_was_written_a_moment_ago_is_not_remembered(tmp_path, large, monkeypatch):
    monkeypatch.setattr(identity, "TICK_NS", 2 * 10**9)
    write(tmp_path / "model")
    assert identity_of(tmp_path / "model") == identity_of(tmp_path / "model")
    assert len(large) == 2
    assert not (tmp_path / "home" / "identities").exists()


def test_pieces_are_digested_in_their_order(tmp_path, monkeypatch):
    checkpoint = write(tmp_path / "model")
    whole = checkpoint.contents.identity()
    monkeypatch.setattr(identity, "PIECE", 4096)
    seen = []
    monkeypatch.setattr(identity, "SMALL", 0)
    pieces = FolderCheckpoint(tmp_path / "model").contents.identity(lambda *counts: seen.append(counts))
    size = (tmp_path / "model" / FILE_NAME).stat().st_size
    assert pieces != whole
    assert seen[-1] == (size, size)
    assert identity_of(tmp_path / "model") == pieces


def test_a_home_that_cannot_be_written_forgets(tmp_path, large, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "identities").write_text("a file")
    write(tmp_path / "model")
    assert identity_of(tmp_path / "model") == identity_of(tmp_path / "model")
    assert len(large) == 2


def rewritten(folder):
    stored = load_file(folder / FILE_NAME)
    save_file({name: value + 1 for name, value in stored.items()}, folder / FILE_NAME)


def replaced(folder):
    shutil.copyfile(folder / FILE_NAME, folder / "new")
    change_in_place(folder / "new")
    os.replace(folder / "new", folder / FILE_NAME)


@pytest.mark.parametrize("change", [rewritten, replaced, lambda folder: change_in_place(folder / FILE_NAME)])
@pytest.mark.parametrize("when", [0.0, 0.5, 1.0])
def test_a_source_that_changes_while_it_is_packed_makes_no_copy(tmp_path, change, when):
    checkpoint = write(tmp_path / "model")
    changed = []

    def progress(phase, done, total):
        if phase == "packing" and done >= when * total and not changed:
            changed.append(change(tmp_path / "model"))

    with pytest.raises(CheckpointError, match=r"model\.safetensors: changed while it was read.*run this again") as said:
        pack_calibrated(checkpoint, tmp_path / "packed", "q8", progress=progress)
    assert "\n" not in str(said.value)
    assert not [path for path in (tmp_path / "packed").iterdir() if path.name.startswith(FILE_NAME)]
    pack_calibrated(FolderCheckpoint(tmp_path / "model"), tmp_path / "packed", "q8")


def test_a_source_that_is_only_moved_or_touched_is_packed(tmp_path):
    checkpoint = write(tmp_path / "model")

    def progress(phase, done, total):
        os.utime(tmp_path / "model" / FILE_NAME, (1, 1))
        shutil.copyfile(tmp_path / "model" / FILE_NAME, tmp_path / "model" / "new")
        os.replace(tmp_path / "model" / "new", tmp_path / "model" / FILE_NAME)

    assert (pack_calibrated(checkpoint, tmp_path / "packed", "q8", progress=progress) / FILE_NAME).is_file()


def test_texts_are_read_where_the_checkpoint_lies(tmp_path):
    """Through a link as the hub's cache has it, and never from the packed copy."""
    write(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(file)
    model = load_model(snapshot, LoadOptions(quant="q8"))
    model.close()
    assert model.texts == snapshot
    (copy,) = (tmp_path / "home" / "packed").iterdir()
    packed = load_model(copy)
    packed.close()
    assert packed.texts == copy


class Nothing:
    """A model that is not built: only the texts beside it count."""

    compile_s, slots, pool, ctx, max_step, max_wanted = 0.0, 1, None, 8, 8, 8

    def __init__(self, spec, weights, limits, *, name, texts, notice, progress):
        self.spec, self.texts, self.name, self.lock = spec, texts, name, nullcontext()

    def close(self):
        pass


def loaded(folder, monkeypatch):
    monkeypatch.setattr(loading, "Model", Nothing)
    return from_model(load_model(folder))


def test_texts_are_those_of_now(tmp_path, monkeypatch):
    """Changed, added and removed; the packed copy is made once."""
    folder = write(tmp_path / "model").path
    assert loaded(folder, monkeypatch).tokenizer is None
    byte_tokenizer_folder(folder, "OLD {{ messages[0].content }}")
    (folder / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": 3}')
    messages = [{"role": "user", "content": "x"}]
    first = loaded(folder, monkeypatch)
    assert (first.template.render(messages), first.defaults.temperature) == ("OLD x", 0.5)
    assert 3 in first.tokenizer.eos_ids
    byte_tokenizer_folder(folder, "NEW {{ messages[0].content }}", eos_token="<|im_start|>")
    (folder / "generation_config.json").write_text('{"temperature": 0.9}')
    second = loaded(folder, monkeypatch)
    assert (second.template.render(messages), second.defaults.temperature) == ("NEW x", 0.9)
    assert second.tokenizer.eos_token == "<|im_start|>"
    assert 3 not in second.tokenizer.eos_ids
    (folder / "chat_template.jinja").write_text("FILE {{ messages[0].content }}")
    assert loaded(folder, monkeypatch).template.render(messages) == "FILE x"
    (folder / "chat_template.jinja").unlink()
    (folder / "generation_config.json").unlink()
    last = loaded(folder, monkeypatch)
    assert (last.template.render(messages), last.defaults.temperature) == ("NEW x", 0.8)
    assert len(list((tmp_path / "home" / "packed").iterdir())) == 1
