"""The command line. `main` dispatches; each command's flags stand beside what it does."""
