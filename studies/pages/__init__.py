"""The pages of the documentation that are made, not written: `python -m studies.pages` (`make docs`)."""
