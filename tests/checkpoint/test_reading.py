"""Files that lie, are damaged, or would run code: each is refused by name, and little is read."""

import collections
import os
import pickle
import struct
import zipfile

import pytest
import torch
from strange_files import Call, Storage, little_memory, pickled, tensor, write_legacy, write_zip
from torch import nn

from yolact_d2.checkpoint import CheckpointMismatch, read_checkpoint
from yolact_d2.checkpoint.reading import read_state_dict

FOUR = torch.tensor([1.0, 2.0, 3.0, 4.0])


def refused(path):
    with little_memory(), pytest.raises(CheckpointMismatch) as error:
        read_checkpoint(str(path))
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture(params=["zip", "legacy"])
def write(request, tmp_path):
    """Writes `content`, and the storage "0" of 4 floats, in either of torch's formats."""

    def write(content, **storage):
        view = (None,) if request.param == "legacy" else ()
        content = {k: v(**storage, view=view) if callable(v) else v for k, v in content.items()}
        writer = write_legacy if request.param == "legacy" else write_zip
        return writer(tmp_path / "some.pth", content)

    return write


def lying(numel, size, stride, offset=0, kind=torch.FloatStorage):
    return lambda view: tensor(Storage(numel, kind, view=view), size, stride, offset)


@pytest.mark.parametrize("size, stride", [((4,), (1,)), ((2, 2), (1, 2)), ((0, 5), (5, 1))])
def test_honest_tensor_is_read(write, size, stride):
    got = read_checkpoint(str(write({"a": lying(4, size, stride)})))["a"]
    assert torch.equal(got, FOUR.as_strided(size, stride))


@pytest.mark.parametrize(
    "lie, message",
    [
        (lying(10**12, (4,), (1,)), "claim|needs 4000000000000 bytes"),
        (lying(5, (5,), (1,)), "claim|needs 20 bytes"),
        (lying(3, (3,), (1,)), "needs 12 bytes|wrong byte size"),
        (lying(4, (4,), (1,), kind=torch.DoubleStorage), "claim|needs 32 bytes"),
        (lying(4, (5,), (1,)), "shape"),
        (lying(4, (2,), (4,)), "shape"),
        (lying(4, (2,), (1,), offset=3), "shape"),
        (lying(4, (2,), (1,), offset=-1), "no count"),
        (lying(4, (2,), (-1,)), "no count"),
        (lying(-4, (0,), (1,)), "no count"),
        (lying(4, (2**40, 2**40), (0, 0)), "shape"),
        (lying(4, (10**6, 10**6), (0, 0)), "shape"),
        (lying(4, (5,), (0,)), "shape"),
        (lying(4, (2, 2), (1,)), "strides"),
        (lying(4.0, (4,), (1,)), "no count"),
        (lying(4, Call(torch.Size, [2, 2]), (1,)), "strides"),
        (lying(4, Call(torch.Size, [-2]), (1,)), "no count"),
        (lying(4, (1,) * 65, (1,) * 65), "65 dimensions"),
        (Call(torch.Size, [1] * 65), "65 dimensions"),
    ],
)
def test_sizes_that_lie(write, lie, message):
    refusal = refused(write({"fc.weight": lie}))
    assert any(part in refusal for part in message.split("|")), refusal


CALLS = {
    "os.mkdir": lambda mark: Call(os.mkdir, mark),
    "posix.system": lambda mark: Call(os.system, f"mkdir {mark}"),
    "eval": lambda mark: Call(eval, f"__import__('os').mkdir({mark!r})"),
    "exec": lambda mark: Call(exec, f"import os; os.mkdir({mark!r})"),
    "getattr": lambda mark: Call(getattr, "text", "upper"),
    # These are among what torch allows.
    "bytearray": lambda mark: Call(bytearray, 10**10),
    "torch.Tensor": lambda mark: Call(torch.Tensor, 10**5, 10**5),
    "set": lambda mark: Call(set, [1]),
    "_codecs.encode": lambda mark: b"bytes",
    "torch.storage._load_from_bytes": lambda mark: Call(torch.storage._load_from_bytes, b""),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("depth", [0, 3])
def test_what_is_called_is_refused_by_name(write, tmp_path, name, depth):
    mark = tmp_path / "mark"
    content = CALLS[name](str(mark))
    for _ in range(depth):
        content = {"inside": [1, (content, 2)]}
    message = refused(write({"model": content}))
    assert "not loaded from strangers" in message and name.rpartition(".")[2] in message
    assert not mark.exists()


def test_the_calls_would_run(tmp_path):
    """So that the test above can fail."""
    mark = tmp_path / "mark"
    pickle.loads(pickled(CALLS["eval"](str(mark))))
    assert mark.exists()


def test_keys_that_take_long_to_hash(tmp_path):
    # Each tuple holds the one before twice; 60 of them would take forever.
    tuples = b")" + 22 * b"q\x00h\x00\x86"
    path = write_zip(tmp_path / "some.pth", b"\x80\x02}" + tuples + b"K\x01s.")
    assert "it has a key that is a tuple" in refused(path)


def test_compressed_record_is_refused(tmp_path):
    content = {"a": tensor(Storage(16_000_000), (16_000_000,), (1,))}
    path = write_zip(tmp_path / "bomb.pth", content, bytes(64_000_000), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "'archive/data/0' is compressed" in refused(path)


def test_records_that_share_their_bytes_are_refused(tmp_path):
    path = write_zip(tmp_path / "bomb.pth", {"a": 1}, bytes(1000))
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(1, 100):
            copy = zipfile.ZipInfo(f"archive/data/{i}")
            original = archive.getinfo("archive/data/0")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(copy, name, getattr(original, name))
            archive.filelist.append(copy)
        archive._didModify = True
    assert "its records claim" in refused(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_records_of_one_name_are_refused(tmp_path):
    path = write_zip(tmp_path / "two.pth", {"a": 1})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", pickled({"a": 2}))
    assert "two records of one name" in refused(path)


def test_record_before_which_something_is_hidden_is_refused(tmp_path):
    path = write_zip(tmp_path / "hidden.pth", {"a": 1})
    path.write_bytes(b"PK\x03\x04" + bytes(100) + path.read_bytes())
    assert "does not start with a record" in refused(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_cut_is_noticed(tmp_path, legacy):
    path = tmp_path / "cut.pth"
    torch.save({"model": {"a": FOUR}}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    assert torch.equal(read_state_dict(str(path))["a"], FOUR)
    # Every length would take seconds.
    for length in [*range(0, len(whole), 7), *range(len(whole) - 9, len(whole))]:
        path.write_bytes(whole[:length])
        refused(path)


def test_no_changed_byte_changes_a_tensor(tmp_path):
    path = tmp_path / "changed.pth"
    torch.save({"model": {"a": FOUR, "b": FOUR.long()}}, path)
    whole = path.read_bytes()
    start = whole.index(FOUR.numpy().tobytes())
    noticed = 0
    for place in [*range(0, len(whole), 5), *range(start, start + 16)]:
        changed = bytearray(whole)
        changed[place] ^= 0x41
        path.write_bytes(changed)
        try:
            got = read_state_dict(str(path))
        except CheckpointMismatch:
            noticed += 1
        else:  # such as the date of a record, or what fills the space between two
            assert list(got) == ["a", "b"]
            assert torch.equal(got["a"], FOUR) and torch.equal(got["b"], FOUR.long())
            assert not start <= place < start + 16
    assert noticed > 16


def test_checksums_that_were_not_computed_are_not_missed(tmp_path):
    path = tmp_path / "some.pth"
    torch.save({"a": FOUR}, path)
    with zipfile.ZipFile(path) as archive:
        sums = [info.CRC for info in archive.infolist()]
    content = path.read_bytes()
    for crc in sums:
        content = content.replace(struct.pack("<I", crc), bytes(4))
    path.write_bytes(content)
    assert torch.equal(read_checkpoint(str(path))["a"], FOUR)


def test_values_that_are_missing(tmp_path):
    content = {"a": tensor(Storage(4, view=(None,)), (4,), (1,))}
    message = refused(write_legacy(tmp_path / "some.pth", content, keys=()))
    assert "the values of some tensors are missing" in message
    content = {"a": tensor(Storage(4, key="other"), (4,), (1,))}
    message = refused(write_zip(tmp_path / "some.pth", content))
    assert "record 'other' is missing" in message


@pytest.mark.parametrize("legacy", [False, True])
def test_storage_of_two_sizes(tmp_path, legacy):
    view = (None,) if legacy else ()
    content = {str(n): tensor(Storage(n, view=view), (n,), (1,)) for n in (4, 5)}
    path = (write_legacy if legacy else write_zip)(tmp_path / "some.pth", content)
    assert "storage '0' has two sizes" in refused(path)


def test_parts_of_a_storage(tmp_path):
    """As files of torch 0.1 have them."""
    part = Storage(4, view=(("part", 1, 2),))
    path = write_legacy(tmp_path / "some.pth", {"a": tensor(part, (2,), (1,))})
    assert torch.equal(read_checkpoint(str(path))["a"], FOUR[1:3])
    for view in (("part", 1, 4), ("part", -1, 2)):
        content = {"a": tensor(Storage(4, view=(view,)), (2,), (1,))}
        refused(write_legacy(tmp_path / "some.pth", content))


def test_parameters_of_old_files(tmp_path):
    """torch before 0.4 made a Parameter and then gave it a state."""

    class Old:
        def __reduce__(self):
            data = Call(torch._utils._rebuild_tensor, Storage(4, view=(None,)), 0, (4,), (1,))
            return nn.Parameter, (data,), (data, None, None, True, collections.OrderedDict())

    path = write_legacy(tmp_path / "some.pth", {"a": Old()})
    got = read_checkpoint(str(path))["a"]
    assert isinstance(got, nn.Parameter) and torch.equal(got.data, FOUR)


def test_state_of_a_parameter_that_lies(tmp_path):
    class Old:
        def __reduce__(self):
            return nn.Parameter, (), (Storage(4, view=(None,)), 0, (10**12,), (1,))

    assert "shape" in refused(write_legacy(tmp_path / "some.pth", {"a": Old()}))


def test_what_training_saves_is_read(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.5, 0.9))
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    saved = {
        "model": model.half().state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "iteration": 2**40,
        "note": None,
    }
    torch.save(saved, tmp_path / "some.pth")
    got = read_checkpoint(str(tmp_path / "some.pth"))
    assert list(got) == list(saved) and got["iteration"] == 2**40
    for key, value in saved["model"].items():
        assert got["model"][key].dtype == value.dtype and torch.equal(got["model"][key], value)
    assert torch.equal(got["random"], saved["random"])
    assert got["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    for i, state in saved["optimizer"]["state"].items():
        assert all(torch.equal(got["optimizer"]["state"][i][k], v) for k, v in state.items())


def test_too_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("yolact_d2.checkpoint.pickles._MAX_STEPS", 1000)
    path = write_zip(tmp_path / "long.pth", {"a": list(range(400))})
    assert len(read_checkpoint(str(path))["a"]) == 400
    path = write_zip(tmp_path / "long.pth", {"a": list(range(1000))})
    assert "more than 1000 steps" in refused(path)


def test_missing_file_is_no_mismatch(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        read_checkpoint(str(tmp_path / "nowhere.pth"))


def test_weights_only_is_asked_for(tmp_path, monkeypatch):
    """Before 2.6 it was not torch's default."""
    asked = []
    monkeypatch.setattr(torch, "load", lambda *_, **kwargs: asked.append(kwargs) or {})
    read_checkpoint(str(write_zip(tmp_path / "some.pth", {"a": 1})))
    assert asked == [{"map_location": "cpu", "weights_only": True}]
