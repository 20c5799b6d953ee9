"""What may be wrong with data: a sentence that names the item, or a correct forecast; never a forecast of NaN."""

import numpy as np
import pandas as pd
import pytest

from timeseries import from_pandas
from timeseries.frequency import periods_of
from timeseries.series import period_freq, read_schema, read_series

KINDS = ["linear", "s4d", "patch", "s_mamba", "time_machine", "simba"]


@pytest.fixture(scope="module", params=KINDS)
def trained(request, small, make_entries):
    return small(request.param).train(make_entries())


def entry(target, freq="h", **more):
    return {"start": pd.Period("2022-01-01", freq=freq), "target": np.asarray(target, float), "item_id": "a", **more}


def forecast(predictor, *arguments, **more):
    made = next(iter(predictor.predict([entry(*arguments, **more)])))
    for level in (0.025, 0.5, 0.975):
        assert np.isfinite(made.quantile(level)).all()
    return made


def test_a_series_of_nothing_is_refused(trained):
    with pytest.raises(ValueError, match=r"item 'a': target has no observed value \(all 20 are NaN\)"):
        forecast(trained, [np.nan] * 20)


def test_infinite_values_are_refused(trained):
    with pytest.raises(ValueError, match=r"item 'a': target is inf at \[3\], expected finite numbers; write NaN where"):
        forecast(trained, [1, 2, 3, np.inf, 5])


def test_another_frequency_is_refused(trained):
    with pytest.raises(ValueError, match="item 'a': its frequency is 'D', the others have 'h'"):
        forecast(trained, np.ones(20), freq="D")


def test_another_number_of_channels_is_refused(trained):
    with pytest.raises(ValueError, match=r"target has shape \(2, 20\), expected 1 channels as in training"):
        forecast(trained, np.ones((2, 20)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "abc"}, "target is not an array of numbers"),
        ({"start": "2020-01-01"}, "start is '2020-01-01', expected a pandas.Period"),
        ({"dt": np.zeros(20)}, "dt must be 20 positive steps"),
    ],
)
def test_fields_of_the_wrong_kind_are_refused(change, message, trained):
    with pytest.raises(ValueError, match=message):
        list(trained.predict([{**entry(np.ones(20)), **change}]))


def test_one_observation_is_repeated(trained):
    made = forecast(trained, [7.0])
    assert made.quantile(0.1)[0] < 7.0 < made.quantile(0.9)[0]
    assert np.abs(made.quantile(0.5) - 7).max() < 2
    forecast(trained, [np.nan, 7.0, np.nan, np.nan])


def test_a_constant_series_stays_constant(trained):
    np.testing.assert_allclose(forecast(trained, np.full(500, 3.0)).quantile(0.5), 3.0, atol=0.05)


def test_a_history_shorter_than_the_horizon(trained):
    forecast(trained, [5.0, 6.0])


def test_a_window_of_missing_values_at_the_end(trained):
    forecast(trained, [*range(100), *[np.nan] * 60])


def test_a_level_that_dwarfs_the_movement(trained, make_entries):
    """1e9 above the series: the forecast moves along to within rounding."""
    low = entry(make_entries()[0]["target"])
    high = {**low, "target": low["target"] + 1e9}
    a, b = (next(iter(trained.predict([e]))) for e in (low, high))
    np.testing.assert_allclose(b.quantile(0.5) - 1e9, a.quantile(0.5), atol=0.3)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_units_do_not_matter(factor, trained, make_entries):
    one = entry(make_entries()[0]["target"])
    a, b = (next(iter(trained.predict([{**one, "target": one["target"] * f}]))) for f in (1.0, factor))
    np.testing.assert_allclose(b.quantile(0.9) / factor, a.quantile(0.9), rtol=1e-5)


@pytest.mark.parametrize("output", ["conformal", "student_t"])
@pytest.mark.parametrize("kind", ["linear", "s4d", "patch"])
@pytest.mark.parametrize("target", [1e60 * np.sin(np.arange(90)), np.arange(5.0)], ids=["large", "after zero"])
def test_values_far_off_the_scale_that_is_known(kind, output, target, small):
    """More than a float32 holds, and a first value of 0, whose scale is that of nothing."""
    forecast(small(kind, output=output, num_samples=50).train([entry(target)]), target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("horizon", [6, 60])
def test_training_on_short_series(kind, horizon, small):
    """Horizons longer than the series, and series of few values, train and give finite forecasts."""
    rng = np.random.default_rng(0)
    data = [entry(rng.normal(size=length)) for length in (40, 3, 1)]
    for made in small(kind, prediction_length=horizon).train(data).predict(data):
        assert np.isfinite(made.quantile(0.5)).all()
        assert np.isfinite(made.quantile(0.9)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "train: the dataset has no entries"),
        ([entry([1.0])], "train: no series has two observed values"),
        ([entry([1.0, 2.0]), entry([1.0, 2.0], freq="D")], "its frequency is 'D', the others have 'h'"),
        ([{"target": [1.0, 2.0]}], "an entry needs 'target' and 'start'"),
        ([entry([1.0, 2.0]), {"start": pd.Period("2021-03-01", "h")}], "item 1: an entry needs 'target' and 'start'"),
    ],
)
def test_training_on_nothing(data, message, small):
    with pytest.raises(ValueError, match=message):
        small("linear").train(data)


def test_features_that_are_not_finite_are_refused(small, make_entries):
    data = make_entries(features=True)
    data[1]["past_feat_dynamic_real"][0, 5] = np.nan
    with pytest.raises(ValueError, match=r"item 'item 1': past_feat_dynamic_real is nan at \[0, 5\]"):
        small("linear").train(data)


def test_gaps_in_an_index_become_missing_values():
    dates = pd.date_range("2020-01-01", periods=48, freq="h").delete([5, 6, 30])
    frame = pd.DataFrame({"x": np.arange(45.0), "u": 1.0}, index=dates)
    (made,) = from_pandas(frame, target="x", known=["u"], future_length=4)
    assert made["target"].shape == (44,)
    assert np.isnan(made["target"]).nonzero()[0].tolist() == [5, 6, 30]
    assert made["feat_dynamic_real"].shape == (1, 48)
    assert made["start"] == pd.Period("2020-01-01", freq="h")


def test_long_frames_and_wide_frames():
    dates = pd.date_range("2020-01-31", periods=20, freq="ME").delete(7)
    long = pd.concat([pd.DataFrame({"when": dates, "id": name, "y": np.arange(19.0)}) for name in "ab"])
    made = from_pandas(long, item_id="id", timestamp="when")
    assert [e["item_id"] for e in made] == ["a", "b"]
    assert made[0]["start"].freqstr == "M"
    assert len(made[0]["target"]) == 20
    wide = pd.DataFrame({"p": np.arange(5.0), "q": np.arange(5.0)}, index=pd.date_range("2020", periods=5, freq="D"))
    assert [e["item_id"] for e in from_pandas(wide)] == ["p", "q"]
    assert from_pandas(wide, target=["p", "q"])[0]["target"].shape == (2, 5)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"x": [1.0]}, index=["never"]), "its index holds no dates"),
        (pd.Series([1.0, 2.0], index=pd.to_datetime(["2020-01-01", "2020-01-01"])), "is there twice"),
        (
            pd.Series([1.0, 2, 3, 4], index=pd.to_datetime(["2020-01-01", "2021-03-02", "2021-04-09", "2024-01-01"])),
            "no frequency",
        ),
        (pd.Series([], dtype=float), "has no rows"),
        (pd.DataFrame({"x": [1.0, 2.0, 3.0]}), "item 'series': its index holds no dates"),
        (np.arange(5), "data is of type ndarray, expected a pandas frame or series"),
    ],
)
def test_frames_that_cannot_be_used(frame, message):
    with pytest.raises(ValueError, match=message):
        from_pandas(frame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "lod"}, "item 'series': there is no column 'lod'; its columns are 'load', 'heat', 'site'"),
        ({"target": "load", "known": "heet"}, "there is no column 'heet'"),
        ({}, "column 'site' holds more than numbers"),
        ({"item_id": "shop"}, "item_id='shop' is no column; the columns are 'load', 'heat', 'site'"),
        ({"timestamp": "when"}, "timestamp='when' is no column"),
        ({"target": "load", "future_length": 9}, "future_length=9, expected 0 or more of its 9 steps, not all"),
        ({"target": "load", "future_length": -1}, "future_length=-1, expected 0 or more"),
    ],
)
def test_columns_that_are_not_there_are_named(options, message):
    frame = pd.DataFrame({"load": np.arange(9.0), "heat": np.arange(9.0), "site": "a"})
    with pytest.raises(ValueError, match=message):
        from_pandas(frame.set_index(pd.date_range("2024-01-01", periods=9, freq="h")), **options)


@pytest.mark.parametrize(
    ("dates", "freq"),
    [
        (pd.date_range("2020-01-15", periods=30, freq="MS") + pd.Timedelta(days=14), "M"),  # always the 15th
        (pd.date_range("2020-01-31", periods=30, freq="ME").delete([3, 11]), "M"),
        (pd.date_range("2020-02-10", periods=12, freq="QS-FEB") + pd.Timedelta(days=9), "Q-DEC"),
        (pd.date_range("2020-01-01", periods=50, freq="7D").delete([20]), "7D"),
        (pd.date_range("2020-01-01", periods=50, freq="h").delete([20, 21]), "h"),
    ],
)
def test_frequencies_are_seen_in_the_dates(dates, freq):
    (made,) = from_pandas(pd.Series(np.arange(float(len(dates))), index=dates))
    assert made["start"].freqstr == freq
    assert (~np.isnan(made["target"])).sum() == len(dates)
    np.testing.assert_array_equal(made["target"][~np.isnan(made["target"])], np.arange(len(dates)))


def test_frequency_names():
    assert [period_freq(f) for f in ("ME", "M", "QE", "H", "h", "15min", "W-SUN", "MS")] == [
        "M",
        "M",
        "Q-DEC",
        "h",
        "h",
        "15min",
        "W-SUN",
        "M",
    ]
    names = ("h", "15min", "D", "W-SUN", "M", "Q-DEC", "Y-DEC", "B", "10s")
    assert [periods_of(f)[0] for f in names] == [24, 96, 7, 52, 12, 4, 1, 5, 8640]


def test_a_value_whose_square_is_no_number_is_refused():
    entry = {"start": pd.Period("2024-01-01", freq="h"), "target": np.array([1.0, np.nan, -1e300]), "item_id": "x"}
    with pytest.raises(ValueError, match="item 'x': target reaches 1e\\+300, expected at most 1e\\+100"):
        read_series(entry, read_schema([{**entry, "target": np.ones(3)}], None, True))
