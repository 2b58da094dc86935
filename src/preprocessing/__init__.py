"""Steps before `generate`: what the model is shown, chosen with a look at what it looks at. One file per step."""
