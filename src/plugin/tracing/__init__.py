"""What each generated token leans on, recorded and told."""
