"""Who: which parameters a rule is for, and the groups that the rules make of a model."""
