"""What must survive: event log, desired state and log lines, in one SQLite database with one writer thread."""
