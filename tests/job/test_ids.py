from rayferry.job import identity, storage
from rayferry.job.ids import find_repeated, hash_of
from rayferry.job.storage import File, list_files


def lines(f, _path):
    """A line's text names it; `-` names nothing."""
    for position, line in enumerate(f.read().decode().split()):
        if line != "-":
            yield position, line


def repeated(tmp_path, *contents):
    for index, content in enumerate(contents):
        (tmp_path / f"{index:04d}.txt").write_text(content)
    filesystem, _ = storage.filesystem(str(tmp_path))
    return find_repeated(filesystem, list_files([str(tmp_path)]), lines)


def test_ids_that_come_once_are_not_told(cluster, tmp_path):
    assert repeated(tmp_path, "a b\nc", "d") == {}


def test_of_each_id_that_comes_again_the_first_row_is_told(cluster, tmp_path):
    assert repeated(tmp_path, "x a b a", "b a c", "c c") == {
        hash_of("a"): (0, 1),
        hash_of("b"): (0, 2),
        hash_of("c"): (1, 2),
    }


def test_a_file_that_came_later_is_behind_those_of_the_run():
    files = [File(name, 1, name) for name in ("a", "b", "c")]
    assert [file.path for file in identity.in_order(files, [["c", 1, 0], ["b", 1, 0]])] == ["c", "b", "a"]


def test_rows_without_an_id_are_none_of_each_other(cluster, tmp_path):
    assert repeated(tmp_path, "- -", "-") == {}


def test_the_first_row_is_the_same_however_the_files_are_shared_out(cluster, tmp_path):
    found = repeated(tmp_path, *(f"same {index}" for index in range(150)))
    assert found == {hash_of("same"): (0, 0)}


def test_a_hash_is_64_bits_and_the_same_on_every_node():
    assert hash_of("a") == 3405396810240292928
    assert hash_of("\ud800") < 2**64
