"""The attention methods, one file each. A file is picked up by being here; see CONTRIBUTING.md."""
