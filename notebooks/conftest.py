"""The notebooks are tests; their scripts, which would run all the same cells again, are none."""

collect_ignore = ["scripts"]
