import io
import re
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.parquet import write_table

from pquant.data import Jets, Mnist, Table
from pquant.data.files import COMPRESSIONS, FILES, existing, read_frame, read_npz, save_npz
from pquant.errors import ConfigError


def test_the_first_choice_that_is_there_is_read_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=[1], y=[2], z=[3])
    assert [array.tolist() for array in read_npz(tmp_path / "a.npz", ("nothing", "else"), ("z", "y"))] == [[3], [2]]
    with pytest.raises(ConfigError, match="a.npz: there is no array 'a'; expected the arrays a, b or c; found x, y, z$"):
        read_npz(tmp_path / "a.npz", ("a", "b"), ("c",))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x_train", "y_train", "x_test", "ytest"], "there is no array 'y_test': did you mean 'ytest'? expected the arrays x, y or x_train,"),
        (
            ["x_train", "y_train", "x_test"],
            "there is no array 'y_test'; expected the arrays x, y or x_train, y_train, x_test, y_test; found",
        ),
        (["x_train", "y_train"], "there is no array 'x_test'; expected"),
        (["x", "y", "x_test", "y_test"], "has the arrays x, y and also x_test, y_test: leave one kind out"),
    ],
)
def test_half_a_choice_or_two_at_once_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    np.savez(tmp_path / "a.npz", **{name: np.zeros(1) for name in names})
    with pytest.raises(ConfigError, match=re.escape(f"a.npz: {message}")):
        read_npz(tmp_path / "a.npz", ("x", "y"), ("x_train", "y_train", "x_test", "y_test"))


@pytest.mark.parametrize(("shape", "size"), [((10**12,), 8 * 10**12), ((2,), 16), ((-3,), -24)])
def test_a_header_that_claims_another_size_is_refused_before_memory_is_taken(tmp_path: Path, shape: tuple[int, ...], size: int) -> None:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", member.getvalue() + bytes(24))
    tracemalloc.start()
    with pytest.raises(ConfigError, match=re.escape(f"'x' should be float64 {shape} of {size} bytes, but has 24")):
        read_npz(tmp_path / "a.npz", ("x",))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_what_does_not_fit_into_memory_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise MemoryError("no\nmemory")

    np.savez(tmp_path / "a.npz", x=[1])
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    monkeypatch.setattr(np.lib.format, "read_array", fail)
    monkeypatch.setattr(pd, "read_csv", fail)
    for read in (lambda: read_npz(tmp_path / "a.npz", ("x",)), lambda: read_frame(tmp_path / "a.csv", "y")):
        with pytest.raises(ConfigError, match="cannot be read as .* file.*: MemoryError: no memory$"):
            read()


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
    for name, message in (
        ("a.arff", f"expected a {FILES}"),
        ("a.cvs", f"expected a {FILES}: did you mean '.csv'?"),
        ("a.parquet.gz", f"expected a {FILES}"),
        ("a", f"expected a {FILES}"),
        ("a.csv", "cannot be read as a .csv file: EmptyDataError"),
        ("a.csv.gz", "cannot be read as a .csv file: EmptyDataError"),
        ("a.parquet", "cannot be read as a .parquet file"),
    ):
        (tmp_path / name).write_text("")
        with pytest.raises(ConfigError, match=re.escape(f"{name}: {message}")):
            read_frame(tmp_path / name, "y")


@pytest.mark.parametrize(
    ("name", "separator"),
    [("a.CSV", ","), ("a.tsv", "\t"), ("b.a.Csv.GZ", ","), ("a.csv.bz2", ","), ("a.tsv.xz", "\t"), ("a.csv.zip", ",")],
)
def test_text_files_are_read_by_their_suffix_in_any_case_and_compressed(tmp_path: Path, name: str, separator: str) -> None:
    table = pd.DataFrame({"x": [1.5, 2.5], "y": ["a", "b"]})
    compression = COMPRESSIONS.get(Path(name).suffix.lower())
    table.to_csv(tmp_path / name, sep=separator, index=False, compression=compression)
    assert read_frame(tmp_path / name, "y").to_dict("list") == {"x": [1.5, 2.5], "y": ["a", "b"]}
    content = (tmp_path / name).read_bytes()
    if compression:
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ConfigError, match=f"{name}: cannot be read as a .[ct]sv file"):
            read_frame(tmp_path / name, "y")


@pytest.mark.parametrize("name", ["a.Parquet", "a.PARQUET"])
def test_parquet_files_are_read_by_their_suffix_in_any_case(tmp_path: Path, name: str) -> None:
    pd.DataFrame({"x": [1.5], "y": ["a"]}).to_parquet(tmp_path / name)
    assert read_frame(tmp_path / name, "y").to_dict("list") == {"x": [1.5], "y": ["a"]}


def test_a_named_index_of_a_parquet_file_is_a_column_and_another_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame({"x": [1.5, 2.5, 3.5], "energy": [5, 1, 7], "y": ["a", "b", "c"]})
    for index, expected in (
        (None, ["x", "energy", "y"]),
        ("energy", ["energy", "x", "y"]),
        (["y", "energy"], ["y", "energy", "x"]),
    ):
        (table.set_index(index) if index else table).to_parquet(tmp_path / "a.parquet")
        frame = read_frame(tmp_path / "a.parquet", "y")
        assert list(frame.columns) == expected
        assert frame[table.columns].to_dict("list") == table.to_dict("list")
    assert not caplog.records
    table.iloc[[0, 2, 1]].to_parquet(tmp_path / "a.parquet")
    assert list(read_frame(tmp_path / "a.parquet", "y").columns) == ["x", "energy", "y"]
    assert "the index without a name is left out" in caplog.text


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("header", ["", "Unnamed: 0"])
def test_row_numbers_without_a_name_are_no_feature(tmp_path: Path, first: int, header: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text(f"{header},x,y\n{first},3,4\n{first + 1},5,6\n")
    assert read_frame(tmp_path / "a.csv", "y").to_dict("list") == {"x": [3, 5], "y": [4, 6]}
    assert "column 1 has no name and counts the rows: it is left out" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",x,y\n7,3,4\n8,5,6\n", "column 1 has no name: give it one, or leave the column out"),
        ("x,,y\n7,3.5,4\n8,5,6\n", "column 2 has no name"),
        ("x,y,\n7,3,\n8,5,\n", "column 3 has no name"),
        ("x,y\n7,3,4\n8,5,6\n", "the rows have more values than the 2 names in the header"),
        ("x,y\n7,3,4,1\n8,5,6,1\n", "the rows have more values than the 2 names in the header"),
        ("x,y,x,x\n7,3,4,1\n", "3 columns have the name 'x'"),
        ("x,x.1,y,y\n7,3,4,1\n", "2 columns have the name 'y'"),
        ('x,"y\nz","y\nz"\n7,3,4\n', "2 columns have the name 'y z'"),
        ("x,y\n1,2\n3,4,5\n", "cannot be read as a .csv file: ParserError"),
    ],
)
def test_columns_without_a_name_or_with_the_same_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ConfigError, match=f"a.csv: {message}") as error:
        read_frame(tmp_path / "a.csv", "y")
    assert "\n" not in str(error.value)


def test_the_same_name_twice_in_a_parquet_file_is_refused(tmp_path: Path) -> None:
    write_table(pyarrow.table([[1], [2], [3]], names=["x", "y", "x"]), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="a.parquet: 2 columns have the name 'x'"):
        read_frame(tmp_path / "a.parquet", "y")


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text("")
    assert existing("~/a.csv") == tmp_path / "a.csv"


@pytest.mark.parametrize("path", ["nowhere.csv", "/", "a" * 300, "a\0b.csv"])
def test_a_path_without_a_file_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="data.path: there is no file '"):
        existing(path)


@pytest.mark.parametrize(
    ("source", "key"), [(Table(path="~nouser/x.csv"), "data.path"), (Jets(root="~nouser"), "data.root"), (Mnist(root="~nouser"), "data.root")]
)
def test_the_home_of_nobody_is_refused(source: Table | Jets | Mnist, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=None))
    with pytest.raises(ConfigError, match=f"^{key}: '~nouser[a-z/.]*' is in the home folder of an unknown user$"):
        source.load(0)
