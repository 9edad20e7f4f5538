"""The file driver: jobs checked, leaves measured, merged and written within a memory budget."""
