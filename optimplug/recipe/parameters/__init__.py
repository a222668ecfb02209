"""Who learns how: which parameters a rule is for, and the groups that rules make of a model."""
