"""What two recipes have otherwise: key by key, and for a model, group by group."""

from optimplug.show.difference.keys import KeyChange, changed_keys
from optimplug.show.difference.plans import PlanDifference
from optimplug.show.difference.table import keys_table, plans_table

__all__ = ["KeyChange", "PlanDifference", "changed_keys", "keys_table", "plans_table"]
