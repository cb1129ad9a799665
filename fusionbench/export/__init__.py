"""Results as files for others: tables, and what other benchmarking tools read, a file for each format."""
