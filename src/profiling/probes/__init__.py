"""The profiles, one file each."""
