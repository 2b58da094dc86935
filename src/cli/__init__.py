"""The shell: parses, calls, prints."""
