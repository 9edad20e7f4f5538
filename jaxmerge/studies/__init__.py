"""Studies: what `jaxmerge run` and `jaxmerge sweep` do, from settings to stored cells."""
