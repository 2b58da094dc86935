"""How a prompt is read and continued under a configuration."""
