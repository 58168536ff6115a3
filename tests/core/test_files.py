import pytest

from unclip_jax.core.files import atomic_path, write_atomically


@pytest.mark.parametrize(
    ("content", "stored"), [("Fréchet\n", b"Fr\xc3\xa9chet\n"), (b"\0", b"\0")]
)
def test_content_is_written_and_nothing_else_is_left(tmp_path, content, stored):
    path = tmp_path / "a.json"
    path.write_text("before")
    write_atomically(path, content)
    assert path.read_bytes() == stored
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"


def test_missing_folder_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a.json", "x")
    assert not list(tmp_path.iterdir())
