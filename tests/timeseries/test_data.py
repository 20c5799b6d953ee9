"""Reading a CSV: every way to get it wrong gets one sentence that says where and what to do."""

import gzip

import numpy as np
import pandas as pd
import pytest

from timeseries.data import Scaler, make_split, read_csv, standardize
from timeseries.errors import DataError


def cell(row, column, value):
    def edit(frame):
        frame.loc[row, column] = value
        return frame

    return edit


def test_reads_values_dates_and_step(csv_file):
    table = read_csv(csv_file)
    assert table.values.shape == (600, 2)
    assert table.columns == ("x0", "x1")
    assert (table.frequency.offset, table.frequency.periods) == ("h", (24, 168))
    assert table.dates[0] == pd.Timestamp("2021-03-01")
    assert read_csv(csv_file, ("x1",)).values.tolist() == table.values[:, 1:].tolist()


def test_empty_cells_and_nan_are_missing_values(tmp_path, write_csv):
    def edit(frame):
        frame.loc[3, "x0"], frame.loc[4, "x0"], frame.loc[5, "x1"] = "", "NaN", "null"
        return frame

    values = read_csv(write_csv(tmp_path / "a.csv", edit=edit)).values
    assert np.argwhere(np.isnan(values)).tolist() == [[3, 0], [4, 0], [5, 1]]


def test_reads_gzip_and_ignores_blank_lines_at_the_end(tmp_path, csv_file):
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write(csv_file.read_text() + "\n,,\n\n")
    assert read_csv(tmp_path / "a.csv.gz").values.shape == (600, 2)


def test_date_column_by_name_or_else_the_first(tmp_path, write_csv):
    def rename(name):
        return lambda frame: frame.rename(columns={"date": name})

    assert read_csv(write_csv(tmp_path / "a.csv", edit=rename("when"))).columns == ("x0", "x1")

    def last(frame):
        return frame.rename(columns={"date": "Timestamp"})[["x0", "x1", "Timestamp"]]

    assert read_csv(write_csv(tmp_path / "b.csv", edit=last)).columns == ("x0", "x1")


@pytest.mark.parametrize(
    ("freq", "rows", "offset", "periods"),
    [
        ("15min", 50, "15min", (96, 672)),
        ("D", 50, "D", (7, 365)),
        ("W", 50, "7D", (52,)),
        ("MS", 50, "MS", (12,)),
        ("ME", 50, "ME", (12,)),
        ("QS", 20, "QS", (4,)),
        ("B", 50, "B", (5, 21)),
        ("YS", 20, "YS", (1,)),
    ],
)
def test_steps(tmp_path, write_csv, freq, rows, offset, periods):
    frequency = read_csv(write_csv(tmp_path / "a.csv", rows=rows, freq=freq)).frequency
    assert (frequency.offset, frequency.periods) == (offset, periods)


BAD = {
    "no dates": (lambda f: f.drop(columns="date"), "there is no date column .*'x0', 'x1'.*add one named 'date'"),
    "text date": (cell(4, "date", "soon"), "line 6: 'soon' is not a date in column 'date'; write it as 2016"),
    "empty date": (cell(4, "date", ""), "line 6: the date is empty in column 'date'"),
    "text value": (cell(7, "x1", "n.a"), "line 9: 'n.a' in column 'x1' is not a finite number; write a number, or"),
    "infinity": (cell(7, "x1", "inf"), "line 9: 'inf' in column 'x1' is not a finite number"),
    "gap": (
        lambda f: f.drop(index=10),
        "line 12: 2021-03-01 11:00:00 follows .*09:00:00, but the step .* 01:00:00; ins",
    ),
    "duplicate": (cell(5, "date", "2021-03-01 04:00:00"), "line 7: the date 2021-03-01 04:00:00 is there twice; keep"),
    "unsorted": (lambda f: f.iloc[::-1], "line 3: .* comes after .*; sort the rows by date, oldest first"),
    "header only": (lambda f: f.iloc[:0], "there is a header but no data; add one line for each time step"),
    "two rows": (lambda f: f.iloc[:2], "2 rows are too few to see the step"),
    "dates only": (lambda f: f[["date"]], "there is no column beside 'date'; add one column for each series"),
    "same name": (lambda f: f.set_axis(["date", "a", "a "], axis=1), "two columns are named 'a'; rename one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_get_one_sentence(tmp_path, write_csv, case):
    edit, message = BAD[case]
    path = write_csv(tmp_path / "bad.csv", rows=40, edit=edit)
    with pytest.raises(DataError, match=message) as error:
        read_csv(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("freq", "missing"), [("MS", "2021-07-01"), ("B", "2021-03-08"), ("D", "2021-03-06")])
def test_gap_on_a_calendar_is_found(tmp_path, write_csv, freq, missing):
    path = write_csv(tmp_path / "a.csv", rows=40, freq=freq, edit=lambda f: f[f["date"] != missing])
    with pytest.raises(DataError, match="insert the missing dates"):
        read_csv(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; it needs a header"),
        (b"date;x\n2021-01-01;1\n", "line 1: the cells are separated by ';'; separate them by commas"),
        (b"date,x\n2021-01-01,1\n2021-01-02,1,2\n", "not a table .*line 3.*as many commas as the header"),
        (b"date,x\n2021-01-01,1,5\n2021-01-02,1,2\n", "as many commas as the header"),
        (b"date,x\n2021-01-01,\xff\xfe\n", "cannot be read as text"),
    ],
)
def test_what_is_no_table(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_csv(tmp_path / "a.csv")


def test_absent_file_and_column(tmp_path, csv_file):
    with pytest.raises(DataError, match="there is no such file; give a CSV file with --data"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(DataError, match="there is no value column 'y'; it has 'x0', 'x1'"):
        read_csv(csv_file, ("y",))


def test_general_split_and_its_windows(csv_file):
    split = make_split(read_csv(csv_file), "auto", 48, 24)
    assert (split.train, split.validation, split.test) == ((0, 420), (420, 480), (480, 600))
    assert split.origins("test", 48, 24) == range(479, 576)
    assert split.origins("validation", None, 24) == range(419, 456)
    assert split.origins("train", 48, 24) == range(47, 396)
    assert split.origins("train", None, 24) == range(0, 396)


def test_split_in_months(tmp_path, write_csv):
    table = read_csv(write_csv(tmp_path / "a.csv", rows=3000))
    split = make_split(table, "2/1/1", 48, 24)
    assert (split.train, split.validation, split.test) == ((0, 1440), (1440, 2160), (2160, 2880))
    with pytest.raises(DataError, match=r"--split 12/4/4 needs 14400 rows .* there are 3000; use percent"):
        make_split(table, "12/4/4", 48, 24)


@pytest.mark.parametrize("spec", ["70/30", "a/b/c", "70/0/30", "70-20-10"])
def test_unreadable_split(csv_file, spec):
    with pytest.raises(DataError, match="write three whole numbers"):
        make_split(read_csv(csv_file), spec, 48, 24)


def test_too_short_for_the_horizon(tmp_path, write_csv):
    table = read_csv(write_csv(tmp_path / "a.csv", rows=200))
    with pytest.raises(
        DataError, match="200 rows are too few: .* the validation part has 20 rows, .* 96 needs 96; give"
    ):
        make_split(table, "auto", None, 96)
    with pytest.raises(DataError, match="the train part has 140 rows, and .* and --context-length 336 needs 346"):
        make_split(table, "auto", 336, 10)
    with pytest.raises(DataError, match="must be at least 1"):
        make_split(table, "auto", None, 0)


def test_scaler_sees_the_train_rows_only(tmp_path, write_csv):
    def edit(frame):
        frame.loc[500:, "x0"] = "1000"
        frame["x1"] = "3"
        return frame

    table = read_csv(write_csv(tmp_path / "a.csv", edit=edit))
    split = make_split(table, "auto", None, 24)
    standard, scaler = standardize(table, split)
    train = standard.values[: split.train[1]]
    assert train[:, 0].mean() == pytest.approx(0)
    assert train[:, 0].std() == pytest.approx(1)
    assert (standard.values[:, 1] == 0).all()  # constant: unit scale
    np.testing.assert_allclose(scaler.inverse(standard.values), table.values)


def test_column_without_a_training_value(tmp_path, write_csv):
    def edit(frame):
        frame.loc[:450, "x1"] = ""
        return frame

    table = read_csv(write_csv(tmp_path / "a.csv", edit=edit))
    with pytest.raises(DataError, match="column 'x1' has no value in the training part .*leave it out with --columns"):
        Scaler.fit(table, (0, 420))


def test_etth1_protocol(etth1):
    table = read_csv(etth1)
    for context_length in (96, 336, None):
        split = make_split(table, "auto", context_length, 96)
        assert (split.train, split.validation, split.test) == ((0, 8640), (8640, 11520), (11520, 14400))
        assert len(split.origins("test", context_length, 96)) == 2785
    counts = [len(split.origins("test", None, h)) for h in (96, 192, 336, 720)]
    assert counts == [2785, 2689, 2545, 2161]
