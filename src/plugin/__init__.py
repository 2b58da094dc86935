"""The plugin: config -> plan -> attention function -> logits."""
