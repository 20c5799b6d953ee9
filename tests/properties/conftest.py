"""The registered mixers as fixtures."""

import pytest

from tests.properties.cases import build, cases


@pytest.fixture(params=cases())
def case(request):
    return request.param


@pytest.fixture
def mixer(case):
    return build(case)


@pytest.fixture(params=cases("recurrent"))
def recurrent(request):
    return build(request.param)


@pytest.fixture(params=cases("takes_rows"))
def with_rows(request):
    return build(request.param)


@pytest.fixture(params=cases("lti"))
def lti(request):
    return build(request.param)
