"""Builds the documentation site of docs/ with MkDocs: ``make docs``. It adds what is made from the code."""
