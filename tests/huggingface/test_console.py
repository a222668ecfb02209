"""The classes of consoles, while somebody waits for a line and after that."""

import gc

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerState

from optimplug.huggingface.console import NextLine

CONSOLES = (PrinterCallback, ProgressCallback)
STATE = TrainerState(is_local_process_zero=True)


def long_logs():
    return {"loss": 0.5, **{f"lr/layer.{i}": 0.1 for i in range(40)}}


@pytest.fixture
def unchanged():
    own = [console.on_log for console in CONSOLES]
    yield
    assert [console.on_log for console in CONSOLES] == own


def printed(capsys, logs):
    PrinterCallback().on_log(None, STATE, None, logs=logs)
    return capsys.readouterr().out


@pytest.mark.parametrize("first_leaves_first", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_several_that_wait_do_not_disturb_each_other(capsys, unchanged, first_leaves_first, same):
    lines = NextLine(), NextLine()
    # As often as it takes for what is left of each time to become too deep to call.
    for _ in range(1000):
        logs = long_logs()
        each = [logs, logs if same else long_logs()]
        for line, own in zip(lines, each, strict=True):
            line.shorten(own)
        if first_leaves_first:
            lines[0].leave()
            lines[1].leave()
        else:
            lines[1].leave()
            lines[0].leave()
    lines[0].shorten(logs)
    lines[1].shorten(long_logs())
    assert "lr of 40 groups" in printed(capsys, logs)
    lines[1].leave()
    assert "lr of 40 groups" in printed(capsys, logs)
    assert "lr of 40 groups" not in printed(capsys, long_logs())
    lines[0].leave()


def test_one_that_is_never_left_changes_nothing_for_longer_than_it_lives(unchanged):
    line = NextLine()
    line.shorten(long_logs())
    del line
    gc.collect()
