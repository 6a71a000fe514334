"""What must survive: the event log and the log lines, in one SQLite database with one writer thread."""
