"""A short soak, on the model that can be worked out by hand."""

import random

from serve.soak.record import Record
from serve.soak.run import SoakSettings, soak
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
