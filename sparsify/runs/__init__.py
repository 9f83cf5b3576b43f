"""Runs and grids: recipes, preflight checks, the workflow, comparisons, and the files and folders that they write."""
