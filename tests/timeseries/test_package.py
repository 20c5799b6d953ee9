"""The package's names all load."""

import pytest

import ssmcore.engine
import timeseries
import timeseries.models


@pytest.mark.parametrize("package", [timeseries, timeseries.models, ssmcore.engine], ids=lambda p: p.__name__)
def test_every_public_name_loads(package):
    for name in dir(package):
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing
