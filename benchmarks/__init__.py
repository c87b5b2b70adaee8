"""Plain ways beside this package's, in one process; what lasts of the numbers are the ratios, not the seconds."""
