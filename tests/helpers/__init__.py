"""What tests share: tiny models, naive references, stand-ins."""
