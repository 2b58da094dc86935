"""`sightline bench`."""
