"""Text: windows of bytes, each with its task, in splits that share no passage."""

from __future__ import annotations

import builtins
import gzip
from pathlib import Path

import pytest
import torch

from gafscope.data import MicrobatchSampler, Split, load_data
from gafscope.data import text as module
from gafscope.data.text import WINDOWS, read_text
from gafscope.errors import UserError


def write_texts(folder: Path, passages: int = 20, context: int = 4) -> dict[str, bytes]:
    """Two files whose bytes tell where they stand: no passage is like another."""
    length = passages * (WINDOWS * context + 1)
    texts = {
        "a.txt": bytes((i * 7 + i // 97) % 128 for i in range(length)),
        "b.txt": bytes(128 + (i * 11 + i // 89) % 128 for i in range(length + 5)),
    }
    folder.mkdir(exist_ok=True)
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    return texts


def windows(split: Split) -> list[bytes]:
    """Each window with the byte that follows it."""
    return [
        bytes([*inputs, targets[-1]])
        for inputs, targets in zip(split.inputs.tolist(), split.true_targets.tolist(), strict=True)
    ]


def test_the_installed_texts_are_three_tasks():
    texts = read_text()
    assert list(texts) == ["documentation", "source", "tables"]
    assert all(len(content) > 300_000 for content in texts.values())
    assert b"assert" in texts["documentation"]
    assert b"class ArgumentParser" in texts["source"]
    assert texts["tables"].startswith(b"569,30,malignant,benign")
    assert read_text() == texts


def test_a_window_is_followed_by_its_targets(tmp_path):
    texts = write_texts(tmp_path)
    data = load_data("text", data_dir=tmp_path, context=4)
    assert (data.name, data.num_classes, data.input_shape) == ("text", 256, (4,))
    for split in (data.train, data.validation, data.test):
        assert split.inputs.dtype == split.targets.dtype == torch.int64
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])
        assert split.tasks is not None
        for window, task in zip(windows(split), split.tasks.tolist(), strict=True):
            assert window in list(texts.values())[task]


def test_the_splits_share_no_passage_and_hold_each_task_in_proportion(tmp_path):
    write_texts(tmp_path)
    data = load_data("text", data_dir=tmp_path, context=4, validation=0.25)
    # 40 passages: a fifth to test, a quarter of the rest to validate.
    sizes = [len(split) for split in (data.train, data.validation, data.test)]
    assert sizes == [24 * WINDOWS, 8 * WINDOWS, 8 * WINDOWS]
    for split in (data.train, data.validation, data.test):
        assert split.tasks is not None
        assert torch.bincount(split.tasks).tolist() == [len(split) // 2] * 2
    # A passage is 16 windows in a row, and its 65 bytes are in no other split.
    passages = [
        {
            b"".join(w[:-1] for w in windows(split)[i : i + WINDOWS])
            for i in range(0, len(split), 16)
        }
        for split in (data.train, data.validation, data.test)
    ]
    assert sum(map(len, passages)) == 40
    assert len(set.union(*passages)) == 40


def test_the_seed_decides_validation_and_noise_but_not_the_test(tmp_path):
    write_texts(tmp_path)

    def load(seed):
        return load_data("text", data_dir=tmp_path, context=4, label_noise=0.4, seed=seed)

    one, again, other = load(1), load(1), load(2)
    assert torch.equal(one.train.targets, again.train.targets)
    assert torch.equal(one.test.inputs, other.test.inputs)
    assert not torch.equal(one.validation.inputs, other.validation.inputs)


def test_noise_moves_single_targets_of_the_training_windows_alone(tmp_path):
    write_texts(tmp_path)
    data = load_data("text", data_dir=tmp_path, context=4, label_noise=0.3)
    moved = data.train.targets != data.train.true_targets
    assert int(moved.sum()) == round(0.3 * moved.numel())
    assert torch.equal(data.train.flipped, moved.any(1))
    assert torch.equal(data.train.inputs[:, 1:], data.train.true_targets[:, :-1])
    assert not data.validation.flipped.any()
    assert not data.test.flipped.any()


def test_size_takes_the_beginning_of_each_text(tmp_path):
    texts = write_texts(tmp_path)
    data = load_data("text", data_dir=tmp_path, context=4, size=650)
    assert sum(len(split) for split in (data.train, data.validation, data.test)) == 20 * WINDOWS
    for window in windows(data.train):
        assert any(window in content[:650] for content in texts.values())


def test_one_file_is_one_task_and_may_be_packed(tmp_path):
    texts = write_texts(tmp_path)
    packed = tmp_path / "c.txt.gz"
    packed.write_bytes(gzip.compress(texts["a.txt"]))
    plain, unpacked = (
        load_data("text", data_dir=tmp_path / name, context=4) for name in ("a.txt", "c.txt.gz")
    )
    assert torch.equal(plain.train.inputs, unpacked.train.inputs)
    assert plain.train.tasks is not None
    assert plain.train.tasks.unique().tolist() == [0]


def test_microbatches_are_composed_by_task(tmp_path):
    write_texts(tmp_path)
    split = load_data("text", data_dir=tmp_path, context=4).train
    assert split.tasks is not None
    single = MicrobatchSampler(split, microbatches=2, microbatch_size=4, balance="single")
    given = MicrobatchSampler(split, microbatches=2, microbatch_size=4, balance="given")
    for _ in range(5):
        inputs, targets = next(single)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        one, two = split.tasks[single.last_indices].view(2, 4).tolist()
        assert {*one} != {*two}
        assert len({*one}) == len({*two}) == 1
        next(given)
        assert torch.equal(split.tasks[given.last_indices].view(2, 4).sum(1), torch.tensor([2, 2]))


def test_a_split_keeps_its_tasks_where_it_goes(tmp_path):
    write_texts(tmp_path)
    split = load_data("text", data_dir=tmp_path, context=4).test
    moved = split.to("cpu").tasks
    assert moved is not None
    assert split.tasks is not None
    assert torch.equal(moved, split.tasks)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"context": 0}, "context of 'text' must be at least 1 byte, found 0"),
        ({"size": 0}, "size of 'text' must be at least 1 byte, found 0"),
        ({"size": 64}, r"'a\.txt' has 64 bytes, less than a passage of 65"),
        ({"size": 200}, "6 passages of 65 bytes .* give at least 650"),
        ({"length": 4}, "option of dataset 'text' 'length'"),
        ({"subset": 10}, "takes no subset, found subset=10.*'size'"),
        ({"validation": 0.01}, "holds out none"),
    ],
)
def test_mistakes_are_named(tmp_path, options, match):
    write_texts(tmp_path)
    with pytest.raises(UserError, match=match):
        load_data("text", data_dir=tmp_path, **{"context": 4} | options)


def test_missing_texts_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere\.txt' does not exist.*--data-dir"):
        load_data("text", data_dir=tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="holds no files"):
        load_data("text", data_dir=tmp_path)
    (tmp_path / "broken.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"broken\.gz' cannot be read"):
        load_data("text", data_dir=tmp_path)
    monkeypatch.setattr(module, "_MODULES", ("no_such_module",))
    with pytest.raises(UserError, match=r"'no_such_module'.*--data-dir"):
        read_text()


def test_a_python_without_its_help_texts(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("pydoc_data"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match="'pydoc_data'"):
        read_text()


def test_a_split_of_tokens_needs_targets_for_each():
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    Split(tokens, tokens, tokens, tasks=torch.arange(3))
    with pytest.raises(UserError, match=r"targets must .* shape \(3, 5\).* \(3, 4\)"):
        Split(tokens, torch.zeros(3, 5, dtype=torch.int64), tokens)
    with pytest.raises(UserError, match="must have one shape"):
        Split(tokens, tokens, tokens[:, 0])
    with pytest.raises(UserError, match="tasks must be one int64 number for each of the 3"):
        Split(tokens, tokens, tokens, tasks=torch.arange(2))
    with pytest.raises(UserError, match=r"tokens of shape \(n, t\), found torch.int64 .*\(3,\)"):
        Split(tokens[:, 0], tokens[:, 0], tokens[:, 0])


def test_tokens_without_tasks_have_nothing_to_balance_by():
    tokens = torch.zeros(8, 4, dtype=torch.int64)
    with pytest.raises(UserError, match=r"goes by the tasks .* has none"):
        MicrobatchSampler(
            Split(tokens, tokens, tokens), microbatches=2, microbatch_size=2, balance="single"
        )
