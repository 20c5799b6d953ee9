"""resolve: the entry, or an error that helps."""

import pytest

from ssmcore.registry import resolve

TABLE = {"mamba": 1, "mamba2": 2, "s4d": 3}


def test_returns_the_entry():
    assert resolve("mamba2", TABLE, "mixer") == 2


@pytest.mark.parametrize("name", ["mambo", "Mamba", "MAMBA "])
def test_unknown_name_gives_near_misses_and_the_list(name):
    with pytest.raises(ValueError, match=r"unknown mixer '.*'; did you mean 'mamba' or 'mamba2'\? Known: mamba, mam"):
        resolve(name, TABLE, "mixer")


def test_nothing_near_gives_the_list_alone():
    with pytest.raises(ValueError, match=r"^unknown mixer 'transformer'\. Known: mamba, mamba2, s4d$"):
        resolve("transformer", TABLE, "mixer")


def test_empty_table():
    with pytest.raises(ValueError, match=r"Known: none$"):
        resolve("x", {}, "mixer")
