"""What a step allocates."""

import itertools

import torch


def peak_of(work):
    """The most bytes that are allocated at once in the course of ``work``, as torch reports them."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(itertools.accumulate(changes))
