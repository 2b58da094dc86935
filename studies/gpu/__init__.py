"""What a card does: the plugin's conformance on it, and its speed. `python -m studies.gpu --out eval/results`."""
