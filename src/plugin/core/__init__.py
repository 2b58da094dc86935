"""What may be done to a pass, and doing it: edits, the one attention function, layout, families."""
