"""Runs on a schedule: what is to run and when, who fires it, and what came of it."""
