"""A short soak, on the model that can be worked out by hand."""

import random

import pytest

from serve.soak.record import Record
from serve.soak.run import SoakSettings, _require_bounded, soak
from serve.soak.trouble import Trouble
from tests.serve.house import in_loop, served

SHORT = SoakSettings(seconds=3, num_visitors=8, fault_interval=0.3, min_gap=-1e9, max_growth=1.0)


@in_loop
async def test_a_short_soak_finds_nothing_wrong():
    record = Record()
    async with served(max_model_len=400, max_num_seqs=8) as tested:
        trouble = Trouble(tested.engine, record, random.Random(1))
        address = f"127.0.0.1:{tested.server.grpc_port}"
        await soak(address, SHORT, record=record, trouble=trouble)
        assert record.violations == []
        assert record.num_canaries > 0
        assert record.num_faults > 0
        assert not tested.server.has_failed


@pytest.mark.parametrize("moment", [0, 2 * 10**9, 7 * 10**9], ids=["steady", "dip", "peak"])
def test_a_pool_that_is_rebuilt_is_no_leak(moment):
    sizes = [4 * 10**9] * 100
    if moment:
        sizes[30], sizes[90] = moment, moment
    record = Record(resident_bytes=sizes)
    _require_bounded(record, max_growth=0.1)
    assert record.violations == []


def test_memory_that_grows_is_a_violation():
    record = Record(resident_bytes=[4 * 10**9 + second * 2 * 10**7 for second in range(100)])
    _require_bounded(record, max_growth=0.1)
    assert record.violations == ["resident memory grew from 4,750,000,000 to 5,730,000,000 bytes"]
