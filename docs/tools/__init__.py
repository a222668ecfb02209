"""What `make docs` does besides mkdocs: pages made from the code, and docstrings as Markdown."""
