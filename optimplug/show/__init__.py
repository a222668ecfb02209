"""A plan for people: a table, a page, a picture. Nothing that trains imports this."""
