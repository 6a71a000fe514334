"""The static check: what is found in a source before anything of it runs, and the processes that look."""
