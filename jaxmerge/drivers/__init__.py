"""What runs a merge: in memory, over devices, leaf by leaf from files."""
