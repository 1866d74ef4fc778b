"""Random damage to data files of every kind: each gives splits of finite values or one line, never another exception."""

import bz2
import dataclasses
import gzip
import io
import lzma
import random
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from pyarrow.parquet import write_table

from pquant.data import Constituents, Mnist, Splits, Table
from pquant.data.checks import check_data
from pquant.errors import ConfigError

from .test_images import images

TEXT = ("a.csv", "a.TSV", "a.csv.gz", "a.csv.bz2", "a.tsv.xz", "a.csv.zip")
KINDS = (*TEXT, "a.parquet", "a.npz", "images.npz", "jets.npz")
ROWS = 40
CELLS = ("", "NA", "nan", "inf", "-1e400", "1e300", "True", "9" * 400, "0x1", "1,5", '"', '"a\nb"', "é", "\0", "2020-01-01", " 1", "\t", "#", "1_0")
NAMES = ("", "y", "x", "x.1", "Unnamed: 0", " ", "\n", '"', "é", "y ", "0")
VALUES = (None, 1, 1.5, float("nan"), float("inf"), 1e300, 10**18, True, "a", "", "NA", b"\xff", Decimal("1.5"), date(2020, 1, 1), [1])
DTYPES = ("f2", "f4", "f8", ">f8", "f16", "i1", ">i2", "u8", "?", "c8", "U3", "S3", "M8[s]", "m8[s]", "V4", "O", "i4,f8")
TYPES = (pyarrow.decimal128(20, 3), pyarrow.date32(), pyarrow.timestamp("s", "UTC"), pyarrow.duration("s"), pyarrow.uint64(), pyarrow.float16())
SHAPES = ((), (0,), (ROWS,), (ROWS, 0), (0, 2), (ROWS, 2), (ROWS, 1), (ROWS, 2, 2), (ROWS + 1, 2), (10, 28, 28), (ROWS, 28, 28, 1), (ROWS, 3, 2))
ARRAYS = ("x", "y", "x_train", "y_train", "x_test", "y_test", "z")


class Source(Protocol):
    def load(self, seed: int) -> Splits: ...


def frame(draw: random.Random) -> pd.DataFrame:
    labels = draw.choice([["a", "b"], [0, 1], [0.5, 1.5], [True, False]])
    return pd.DataFrame({"x": np.arange(ROWS) / 7, "z": np.arange(ROWS) % 5, "y": [labels[row % 2] for row in range(ROWS)]})


def text(draw: random.Random, name: str, damaged: bool) -> bytes:
    """Return a table as text, with cells, names or rows changed when it is to be ``damaged``."""
    separator = "\t" if ".tsv" in name.lower() else ","
    lines = [line.split(",") for line in frame(draw).to_csv(index=draw.random() < 0.2).splitlines()]
    for _ in range(draw.randint(1, 3) if damaged else 0):
        place = draw.randrange(len(lines))
        change = draw.choice(["cell", "column", "name", "longer", "shorter", "rows", "header", "separator"])
        if change == "cell":
            lines[place][draw.randrange(len(lines[place]))] = draw.choice(CELLS)
        elif change == "column":
            value, column = draw.choice(CELLS), draw.randrange(len(lines[0]))
            lines[1:] = [line[:column] + [value] + line[column + 1 :] for line in lines[1:]]
        elif change == "name":
            lines[0][draw.randrange(len(lines[0]))] = draw.choice(NAMES)
        elif change in ("longer", "shorter"):
            lines[place] = lines[place] + ["1"] if change == "longer" else lines[place][:-1] or [""]
        elif change == "separator":
            separator = draw.choice(",\t; ")
        else:
            lines = lines[: draw.randint(1, 4)] if change == "rows" else draw.choice([lines[:1], lines[1:], lines[:1] * 2]) or [[""]]
    return "\n".join(separator.join(line) for line in lines).encode(draw.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with ZipFile(file, "w") as archive:
        archive.writestr("a", content)
    return file.getvalue()


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zip": zipped}


def write_text(path: Path, draw: random.Random, damaged: bool) -> None:
    path.write_bytes(PACK.get(path.suffix, bytes)(text(draw, path.name, damaged)))


def write_parquet(path: Path, draw: random.Random, damaged: bool) -> None:
    table = pyarrow.Table.from_pandas(frame(draw).set_index(draw.choice([["x"], ["x", "z"]])) if draw.random() < 0.3 else frame(draw))
    for _ in range(draw.randint(1, 2) if damaged else 0):
        change = draw.choice(["values", "name", "twice", "rows", "columns", "type"])
        column = draw.randrange(table.num_columns) if table.num_columns else 0
        if change == "rows":
            table = table[: draw.choice([0, 1, 3])]
        elif change == "columns":
            table = table.select(range(draw.randint(0, table.num_columns)))
        elif change == "name" and table.num_columns:
            table = table.rename_columns([draw.choice(NAMES) if place == column else name for place, name in enumerate(table.column_names)])
        elif change == "twice" and table.num_columns:
            table = table.append_column(table.column_names[column], table.column(column))
        elif change == "values" and table.num_columns:
            values = pyarrow.array([draw.choice((draw.choice(VALUES), None))] * len(table))
            table = table.set_column(column, draw.choice(["x", "y"]), values)
        elif change == "type" and table.num_columns:
            values = pyarrow.array([row % 9 for row in range(len(table))], draw.choice(TYPES))
            table = table.set_column(column, draw.choice(["x", "y"]), values.dictionary_encode() if draw.random() < 0.3 else values)
    write_table(table, path)


def write_npz(path: Path, draw: random.Random, damaged: bool) -> None:
    x, y = np.arange(2.0 * ROWS).reshape(ROWS, 2), np.arange(ROWS) % draw.choice([2, ROWS])
    arrays: dict[str, Any] = {"x_train": x, "y_train": y, "x_test": x, "y_test": y} if draw.random() < 0.5 else {"x": x, "y": y}
    if path.name == "jets.npz":
        arrays = {"x": np.arange(6.0 * ROWS).reshape(ROWS, 3, 2), "y": np.arange(ROWS) % 2}
    _write_arrays(path, images((28, 28)) if path.name == "images.npz" else arrays, draw, damaged)


def _write_arrays(path: Path, arrays: dict[str, Any], draw: random.Random, damaged: bool) -> None:
    for _ in range(draw.randint(1, 2) if damaged else 0):
        name, change = draw.choice(list(arrays) or ["x"]), draw.choice(["dtype", "shape", "values", "name", "leave out", "add"])
        if change == "leave out":
            arrays.pop(name, None)
        elif change == "name":
            arrays[draw.choice(ARRAYS)] = arrays.pop(name, np.zeros(1))
        elif change == "add":
            arrays[draw.choice(ARRAYS)] = np.zeros(draw.choice(SHAPES), draw.choice(DTYPES))
        elif change == "values":
            arrays[name] = np.array([draw.choice(VALUES)] * ROWS, dtype=draw.choice([None, object]))
        else:
            old = np.asarray(arrays.get(name, np.zeros(1)))
            arrays[name] = np.zeros(old.shape if change == "dtype" else draw.choice(SHAPES), draw.choice(DTYPES) if change == "dtype" else old.dtype)
    np.savez(path, **arrays)
    if damaged and draw.random() < 0.3:
        lie_about_an_array(path, draw)


def lie_about_an_array(path: Path, draw: random.Random) -> None:
    """Give the file an array whose header is not that of its data."""
    header = io.BytesIO()
    descr = draw.choice(["<f8", "|u1", "|O", "<U100000", "nonsense", ""])
    shape = draw.choice([(10**12,), (10**12, 2), (-1, 2), (2**63, 2**63), (ROWS, 3)])
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    content = bytearray(header.getvalue() + bytes(100))
    if draw.random() < 0.5:
        content[draw.randrange(len(content))] = draw.randrange(256)
    with ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[draw.choice([*members, "x.npy"])] = bytes(content)
    with ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)


def tear(path: Path, draw: random.Random) -> None:
    """Cut the file off, empty it, or change bits or bytes of it."""
    content, change = bytearray(path.read_bytes()), draw.choice(["cut", "empty", "bits", "bits", "bytes", "more", "other"])
    if change == "cut":
        del content[draw.randrange(len(content) + 1) :]
    elif change == "empty":
        content.clear()
    elif change == "bits":
        for _ in range(draw.choice([1, 1, 2, 20])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif change == "bytes":
        start = draw.randrange(len(content))
        content[start : start + 16] = draw.randbytes(16)
    elif change == "more":
        content += draw.randbytes(draw.choice([1, 1000]))
    else:
        content[:] = draw.randbytes(500)
    path.write_bytes(content)


def write_for(name: str) -> Callable[[Path, random.Random, bool], None]:
    return write_text if name in TEXT else write_parquet if name == "a.parquet" else write_npz


def source_of(path: Path) -> Table | Mnist | Constituents:
    if path.name == "images.npz":
        return Mnist(path=str(path), validation_fraction=0.25)
    return Constituents(path=str(path)) if path.name == "jets.npz" else Table(path=str(path))


def loads(source: Source) -> bool:
    """Return whether there are splits, of finite values; if not, there was one line."""
    try:
        splits = source.load(0)
        check_data(splits)
    except ConfigError as error:
        assert str(error) and len(str(error).splitlines()) == 1
        return False
    for part in (splits.train, splits.validation, splits.test):
        assert all(bool(torch.isfinite(tensor).all()) and len(tensor) for tensor in part.tensors)
    assert all(np.isfinite(value) for value in splits.units.values())
    return True


def outcomes(name: str, seeds: range, folder: Path) -> set[bool]:
    found = set()
    for seed in seeds:
        draw, path = random.Random(f"{name} {seed}"), folder / name
        damage = draw.choice(["none", "content", "file", "file", "both"])
        source = source_of(path)
        if isinstance(source, Table) and draw.random() < 0.5:
            source = dataclasses.replace(source, task=draw.choice(["classification", "regression"]), target=draw.choice(["y", "x", "Y", ""]))
        try:
            write_for(name)(path, draw, damage in ("content", "both"))
            if damage in ("file", "both"):
                tear(path, draw)
            found.add(loads(source))
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}: {error}") from error
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_a_sample_of_damaged_files_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    assert outcomes(name, range(25), tmp_path) == {True, False}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    assert outcomes(name, range(25, 1500), tmp_path) == {True, False}
