"""Recipes: merges as data, in jaxmerge's own form and in mergekit's."""
