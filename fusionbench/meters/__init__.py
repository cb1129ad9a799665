"""What can be measured of a call: one file per meter."""
