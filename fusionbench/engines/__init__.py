"""Engines: where workers live. Each takes jobs and gives back one record for every job, whatever happens to it."""
