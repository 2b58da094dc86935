"""`sightline report`: folders of results, read back and shown."""
