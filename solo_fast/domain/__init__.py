"""Plain types that every room shares: ids, errors, messages, limits. No I/O and no clock of its own."""
