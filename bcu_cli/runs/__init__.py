"""Support for long work: supervised processes, signals, locks, and state that can be resumed."""
