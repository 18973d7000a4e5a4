"""The limits of a guard: their values, units, options and help."""
