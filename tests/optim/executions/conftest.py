import pytest

from optimplug._core.optim.executions.triton import kernels


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that have been launched."""
    from optimplug._core.optim.executions.triton import fixed_kernels  # imports Triton

    ran = []
    original = kernels.launch

    def watched(kernel, *given, **constants):
        original(kernel, *given, **constants)
        if kernel is not fixed_kernels.nothing:  # by which a GPU is tried out, once
            ran.append(kernel.fn.__name__)

    monkeypatch.setattr(kernels, "launch", watched)
    return ran


@pytest.fixture
def planned(monkeypatch):
    """The names of the kernels that would be launched; none is, which spares much time."""
    names = []
    monkeypatch.setattr(
        kernels, "launch", lambda kernel, *_, **__: names.append(kernel.fn.__name__)
    )
    return names
