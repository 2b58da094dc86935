"""Loading models by name, and putting prompts to them."""
