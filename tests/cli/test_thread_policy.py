"""On a CPU the threads of a command leave each other to compute."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from jaxinfer.cli import loading, thread_policy

pytestmark = pytest.mark.skipif(
    not hasattr(os, "SCHED_BATCH"), reason="a scheduling policy of Linux"
)

_OF_ALL_THREADS = """
import os, threading
from jaxinfer.cli.thread_policy import stop_preempting

def policies():
    return [os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")]

os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # whatever this one has inherited
enough = threading.Event()
threading.Thread(target=enough.wait, daemon=True).start()
print(policies())
stop_preempting()
threading.Thread(target=enough.wait, daemon=True).start()
print(policies())
enough.set()
"""


def test_it_is_all_threads_that_are_there_and_those_that_come():
    ran = subprocess.run(
        [sys.executable, "-c", _OF_ALL_THREADS],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    before, after = ran.stdout.splitlines()
    assert before == str([os.SCHED_OTHER] * 2)
    assert after == str([os.SCHED_BATCH] * 3)


def test_where_it_is_refused_nothing_changes(monkeypatch):
    def refuse(*_):
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    before = os.sched_getscheduler(0)
    thread_policy.stop_preempting()
    assert os.sched_getscheduler(0) == before


def test_a_policy_that_was_chosen_stays():
    seen = []

    def choose():
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        thread_policy._stop_thread(threading.get_native_id())
        seen.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=choose)
    thread.start()
    thread.join()
    assert seen == [os.SCHED_IDLE]


def test_without_a_list_of_threads_nothing_changes(monkeypatch, tmp_path):
    monkeypatch.setattr(thread_policy, "Path", lambda _: tmp_path / "nothing")
    before = os.sched_getscheduler(0)
    thread_policy.stop_preempting()
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_it_is_for_models_on_the_cpu(platform, monkeypatch):
    llm = SimpleNamespace(platform=platform, startup_seconds={})
    monkeypatch.setattr("jaxinfer.llm.LLM", lambda **_: llm)
    asked = []
    monkeypatch.setattr(loading, "stop_preempting", lambda: asked.append(True))
    assert loading.load_llm() is llm
    assert len(asked) == (platform == "cpu")
