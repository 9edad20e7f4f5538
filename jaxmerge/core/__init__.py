"""What a merge is: types, composition, the registry, names, what every driver checks."""
