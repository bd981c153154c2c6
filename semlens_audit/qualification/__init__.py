"""Qualification of the instrument: models whose true reliance is known, and how often the verdict on them is right."""
