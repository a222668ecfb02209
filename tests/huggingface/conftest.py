import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def _nothing_to_collect_yet():
    """Spare each ``train``, which collects garbage first, half a second over what is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
