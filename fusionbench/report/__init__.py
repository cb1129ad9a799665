"""Everything that shows results to people: one flat frame, terminal tables, one HTML page."""
