"""Measuring hallucination and speed: POPE and CHAIR scores, the runner, the demo, the sweep and the bench."""
