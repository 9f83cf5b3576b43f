"""Runs, grids and what they leave: recipes, preflight, the workflow, comparisons, artefacts and the folders that hold them."""
