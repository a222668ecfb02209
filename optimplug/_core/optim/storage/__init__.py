"""How weights and moments are kept, saved and loaded: roundings, types, codes of eight bits."""
