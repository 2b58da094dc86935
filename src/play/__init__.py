"""`sightline play`: a local page that asks a model plain and under configurations, side by side."""
