from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pquant.data.files import existing, read_frame, read_npz, save_npz
from pquant.errors import ConfigError


def test_the_first_choice_that_is_there_is_read_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=[1], y=[2], z=[3])
    assert [array.tolist() for array in read_npz(tmp_path / "a.npz", ("x", "nothing"), ("z", "y"))] == [[3], [2]]
    with pytest.raises(ConfigError, match="a.npz: expected the arrays a, b or c; found x, y, z"):
        read_npz(tmp_path / "a.npz", ("a", "b"), ("c",))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_what_is_no_npz_is_refused_by_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="a.npz: cannot be read as an npz file of plain arrays"):
        read_npz(tmp_path / "a.npz", ("x",))


def test_python_objects_and_single_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "b.npy", np.zeros(3))
    for name in ("a.npz", "b.npy"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read as an npz file of plain arrays"):
            read_npz(tmp_path / name, ("x",))


@given(position=st.integers(0, 2000), value=st.integers(0, 255))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_read_as_it_was_or_refused(tmp_path: Path, position: int, value: int) -> None:
    path, x = tmp_path / "a.npz", np.arange(300)
    save_npz(path, x=x)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        (array,) = read_npz(path, ("x",))
    except ConfigError as error:
        assert "a.npz" in str(error)
    else:
        assert np.array_equal(array, x)


def test_save_makes_the_folder_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.npz"
    save_npz(path, x=np.arange(3), y=np.array(["g", "q"]))
    assert [array.tolist() for array in read_npz(path, ("x", "y"))] == [[0, 1, 2], ["g", "q"]]
    assert [file.name for file in path.parent.iterdir()] == ["a.npz"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_npz(path, x=np.arange(3))
    with pytest.raises(ConfigError):
        save_npz(path, x=np.array([{}]))
    assert read_npz(path, ("x",))[0].tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_other_suffixes_and_unreadable_tables_are_refused(tmp_path: Path) -> None:
    for name, message in (("a.arff", "expected a .csv, .parquet or .npz file"), ("a.csv", "cannot be read as a .csv file: EmptyDataError")):
        (tmp_path / name).write_text("")
        with pytest.raises(ConfigError, match=f"{name}: {message}"):
            read_frame(tmp_path / name)
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match="a.parquet: cannot be read as a .parquet file"):
        read_frame(tmp_path / "a.parquet")


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text("")
    assert existing("~/a.csv") == tmp_path / "a.csv"
