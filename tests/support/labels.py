"""Names for the cases of a table."""

import re


def label(value):
    """As ``str``, but the same in every process: sets in order, functions without their address.

    The processes of pytest-xdist compare the names of their tests.
    """
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(label, value))) + "}"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
