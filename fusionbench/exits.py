"""What an exit code says: 0 fine, 1 regression, 2 usage or suite error, and these."""

REGRESSION = 1
USAGE = 2
FAILED = 3  # some jobs failed or were wrong
UNFIT = 4  # the machine, under --strict
NOTHING = 5  # nothing to measure, to show or to compare: never a pass
DAMAGED = 6  # results damaged or not stored
INTERRUPTED = 130  # partial results are saved
