"""How many connections there is room for, with whatever limits a process may have."""

import resource

import pytest

from serve.descriptors import room_for


@pytest.fixture
def limits(monkeypatch):
    """The process's limits, and whether they may be raised."""
    found = {"soft": 1024, "hard": 1024, "refuses": False}

    def change(kind, limits):
        assert kind == resource.RLIMIT_NOFILE
        if found["refuses"]:
            raise ValueError("not allowed to raise maximum limit")
        found["soft"], found["hard"] = limits

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (found["soft"], found["hard"]))
    monkeypatch.setattr(resource, "setrlimit", change)
    return found


def test_a_limit_is_raised_as_far_as_it_has_to_be(limits):
    limits["hard"] = 10**6
    assert room_for(1000, num_ports=2) == 1000
    assert (limits["soft"], limits["hard"]) == (2256, 10**6)


@pytest.mark.parametrize("soft", [5000, resource.RLIM_INFINITY])
def test_a_limit_that_is_enough_is_left_as_it_is(limits, soft):
    limits |= {"soft": soft, "hard": resource.RLIM_INFINITY, "refuses": True}
    assert room_for(1000, num_ports=2) == 1000
    assert limits["soft"] == soft


def test_a_hard_limit_that_is_none_bears_any_number(limits):
    limits["hard"] = resource.RLIM_INFINITY
    assert room_for(10**6, num_ports=1) == 10**6
    assert limits["soft"] == 10**6 + 256


@pytest.mark.parametrize(("refuses", "room"), [(False, (2000 - 256) // 3), (True, 256)])
def test_where_it_cannot_be_raised_there_are_fewer_and_the_log_says_so(
    limits, refuses, room, caplog
):
    limits |= {"hard": 2000, "refuses": refuses}
    assert room_for(1000, num_ports=3) == room
    assert f"{room} connections at most, not 1000" in caplog.text
    assert "raise that (ulimit -n) to 3256" in caplog.text


def test_at_least_one_is_left(limits, caplog):
    limits |= {"soft": 100, "hard": 100}
    assert room_for(1000, num_ports=1) == 1
