"""What a truth written by hand, and what a run of a model, say of its layers."""


def expected_depth(name, depths):
    """The depth of the longest listed name that the parameter's begins with."""
    listed = {prefix: i for i, prefixes in enumerate(depths) for prefix in prefixes}
    within = [prefix for prefix in listed if f"{name}.".startswith(f"{prefix}.")]
    return listed[max(within, key=len)]


def record_calls(model):
    """Return a list to which each run adds modules in their order, each by one of its parameters."""
    calls = []
    for name, module in model.named_modules():
        own = [n for n, _ in module.named_parameters(recurse=False)]
        if own and name:
            note = f"{name}.{own[0]}"
            module.register_forward_pre_hook(lambda *_, note=note: calls.append(note))
    return calls
